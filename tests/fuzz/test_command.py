"""The command line of the campaign, and its exit status."""

import json
from pathlib import Path

import pytest

from tests.fuzz import command
from tests.fuzz.command import KINDS, main, parse
from tests.fuzz.outcome import Finding, Outcome


def test_everything_by_default_with_a_seed_of_its_own() -> None:
    arguments = parse([])
    assert arguments.minutes == 10
    assert {kind: list(parts) for kind, parts in arguments.only.items()} == {k: list(p) for k, p in KINDS.items()}
    assert arguments.seed != parse([]).seed


def test_kinds_and_parts_may_be_chosen() -> None:
    assert {kind: list(parts) for kind, parts in parse(["--only", "stops,frames"]).only.items()} == {
        "bytes": ["stops", "frames"]
    }
    assert list(parse(["--only", "bytes"]).only) == ["bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "allowed: a number above 0"),
        (["--minutes", "nan"], "allowed: a number above 0"),
        (["--only", "byte"], "nothing is called 'byte'; there are bytes: frames"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("findings", [(), (Finding("KeyError in x.py\n[its] traceback", Path("found")),)])
def test_the_status_judges_and_the_time_is_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], findings: tuple[Finding, ...]
) -> None:
    shares: list[tuple[str, float, int]] = []

    def part(name: str, found: tuple[Finding, ...], needs: float = 1.0):
        def run(seconds: float, seed: int, on_progress) -> Outcome:
            shares.append((name, seconds, seed))
            on_progress(name, 5, "half")
            return Outcome(name, 10, "3 edges", needs * seconds, 12.5, found)

        return run

    hasty, last = part("a", (), needs=0.5), part("d", ())
    kinds = {"one": {"a": hasty, "b": part("b", findings), "d": last}, "two": {"c": part("c", ())}}
    monkeypatch.setattr(command, "KINDS", kinds)
    written = tmp_path / "out.json"
    status = main(["--minutes", "2", "--seed", "7", "--json", str(written)])
    assert status == len(findings)
    assert shares == [("a", 20.0, 7), ("b", 25.0, 7), ("d", 25.0, 7), ("c", 60.0, 7)]
    listed = json.loads(written.read_text())["outcomes"]
    assert [(one["name"], len(one["findings"])) for one in listed] == [
        (name, len(findings) if name == "b" else 0) for name in "abdc"
    ]
    assert ("[its] traceback" in capsys.readouterr().out) == bool(findings)
