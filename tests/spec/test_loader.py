"""YAML that PyYAML takes badly: each is refused in words that say where, and costs next to nothing."""

import time
from pathlib import Path

import pytest

from spec.errors import SpecError
from spec.loader import MAX_FILE_BYTES, read_yaml


def read(folder: Path, text: str) -> object:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def aliases(first: str, each: str, levels: int) -> str:
    """Lists of lists: each level repeats the one before it nine times."""
    lines = [f"k0: &k0 {first}"]
    lines += [f"k{n}: &k{n} {each.replace('@', ', '.join([f'*k{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a: 2001-13-01",
            r"line 1, column 4: this cannot be read as timestamp \(month must be in 1..12\); put it in quo",
        ),
        ("!!timestamp", "cannot be read as timestamp"),
        ("a: !!int x", "cannot be read as int"),
        ("a: !!float x", "cannot be read as float"),
        ("a: !!bool x", "cannot be read as bool"),
        ("{2, !!set }", "column 5: this key is read as set, which cannot be one; write plain text"),
        ("!!map :", "this key is read as map"),
        ("a: !!set [1]", "line 1, column 4: this cannot be read as set: it is no mapping"),
        ("a: " + "9" * 5000, "cannot be read as int"),
        ("a: 0x" + "f" * 1000, "cannot be read as int .it has more than 1024 bits"),
        ("a: " + ":".join(["1"] * 3000), "it has more than 2048 characters"),
        ("a: " + ":".join(["1"] * 500_000), "it has more than 2048 characters"),  # minutes, if it were read
        ("a: " + ":".join(["1"] * 400_000) + ".5", "cannot be read as float .it has more than 2048 characters"),
        ("a: !!int " + ":".join(["1"] * 500_000), "it has more than 2048 characters"),
        ("a: 1" + "_" * 900_000, "it has more than 2048 characters"),
        ("a: 1:30", "line 1, column 4: .* to base 60.*write it plainly"),
        ("a: -1:30.5", "to base 60"),
        ("a: 010", "to base 8; write it plainly"),
        ("{16: a, 0x10: b}", "column 9: `0x10` is given twice; keep one"),
        ("{1: a, '1': b}", "`1` is given twice"),
        ("{1: a, true: b}", "`true` is given twice"),
        ("&a [*a]", "line 1, column 1: this contains itself"),
        ("a: &a {b: *a}", "line 1, column 4: this contains itself"),
        ("[" * 2000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("{a: " * 900 + "}" * 900, "nested too deeply"),
        (aliases("[x, x, x]", "[@]", 9), "more than 20000 values"),
        (aliases("{a: 1}", "{<<: [@]}", 9), "more than 20000 values"),
        ("a: [" + "1, " * 20_000 + "]", "more than 20000 values"),
        ("#" * (MAX_FILE_BYTES + 1), "more than 1048576 bytes; is it the right file"),
    ],
)
def test_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    began_s = time.process_time()
    with pytest.raises(SpecError, match=words) as refused:
        read(tmp_path, text)
    assert time.process_time() - began_s < 10
    assert len(str(refused.value)) < 1000


def test_aliases_that_people_write_are_read(tmp_path: Path) -> None:
    text = "one: &defaults {a: 1, b: [2, 3]}\ntwo: *defaults\nthree:\n  <<: *defaults\n  a: 4\n"
    defaults = {"a": 1, "b": [2, 3]}
    assert read(tmp_path, text) == {"one": defaults, "two": defaults, "three": {"a": 4, "b": [2, 3]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2001-12-01", "2001-12-01"),
        ("a: 0x7f", 127),
        ("a: 1e3", "1e3"),
        ("a: 0", 0),
        ("a: 0.5", 0.5),
        ("a: '1:30'", "1:30"),
        ("a: " + "9" * 300, None),
    ],
)
def test_plain_values_are_what_they_were(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, text)
    assert isinstance(found, dict)
    assert (str(found["a"]) if isinstance(value, str) else found["a"]) == (int("9" * 300) if value is None else value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa: 1\n") == {"a": 1}


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(SpecError, match="is not text in UTF-8 .*; save it as that"):
        read_yaml(path)


@pytest.mark.parametrize("number", ["00110000", "7FFFFFFF", "80000000", "FFFFFFFF"])
def test_an_escape_of_no_character_is_named(number: str, tmp_path: Path) -> None:
    assert read(tmp_path, r'name: "\U0010FFFF"') == {"name": "\U0010ffff"}
    with pytest.raises(SpecError, match=r"line 2, column 11: this escape stands for no character"):
        read(tmp_path, f'a: 1\nname: "a\\U{number}"')


@pytest.mark.parametrize("version", ["1." + "9" * 5000, "9" * 5000 + ".1"])
def test_a_version_of_thousands_of_digits_is_named(version: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"line 1, column \d+: this is no version of YAML; leave the line out"):
        read(tmp_path, f"%YAML {version}\n---\na: 1\n")
