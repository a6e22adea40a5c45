"""A safetensors header that somebody else wrote: whatever it says, it is read in bounded memory, or refused by name."""

import json
import os
import struct
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from checkpoint.errors import CheckpointError, MissingFile, TruncatedFile, UnreadableFile
from checkpoint.header import MAX_HEADER_BYTES, read_header

ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: object, data_bytes: int = 24) -> Path:
    """A file with this header, JSON or bytes, and so many bytes of weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "file", {"format": "pt"})
    found = read_header(tmp_path / "file")
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
        "empty": ("F32", (0, 4)),
    }


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": ENTRY | {"data_offsets": [0, 20]}}, "tensor 'a' has 20 bytes, with dtype F32 and shape [2, 3]"),
        ({"a": ENTRY | {"data_offsets": [4, 28]}}, "tensor 'a' leaves bytes unused before it"),
        ({"a": ENTRY | {"data_offsets": [24, 0]}}, "has -24 bytes"),
        ({"a": ENTRY, "b": ENTRY}, "tensor 'b' begins inside another"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 36]}}, "tensor 'b' begins inside another"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [24, 48]}}, "but its header describes"),
        ({"a": ENTRY | {"data_offsets": [2**62, 2**62 + 24]}}, "leaves bytes unused"),
        ({"a": ENTRY | {"data_offsets": [2**70, 2**70 + 24]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"data_offsets": [0, int("9" * 4300)]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"dtype": "F31"}}, "has a dtype that the format does not know: 'F31'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"shape": [2, -3]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"shape": [2, 3.0]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"shape": [True, 6]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"shape": [1] * 50}}, "lacks its dtype, shape or data_offsets"),
        ({"a": ENTRY | {"data_offsets": [0, 12, 24]}}, "lacks its dtype, shape or data_offsets"),
        ({"a": 3}, "lacks its dtype, shape or data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [2, NaN], "data_offsets": [0, 24]}}', "lacks its dtype"),
        (b'{"a": [' + b"[" * 100_000, "nests its values too deeply"),
        (b"{" + b" " * 40, "not valid JSON"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
    ],
)
def test_what_does_not_hold_together(tmp_path: Path, header: object, words: str) -> None:
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(TruncatedFile) as caught:
        read_header(path)
    assert words in caught.value.problem
    assert str(path) in str(caught.value)
    assert "again" in caught.value.remedy


@pytest.mark.parametrize(
    "header",
    [
        {"a" * 10**6: 3},
        {"a": ENTRY | {"dtype": "F" * 10**6}},
        {"a": ENTRY | {"shape": [10**4000] * 16}},
        {"a": ENTRY | {"data_offsets": [0, 10**4000]}},
    ],
    ids=["name", "dtype", "shape", "offsets"],
)
def test_an_error_is_no_longer_than_it_needs_to_be(tmp_path: Path, header: object) -> None:
    with pytest.raises(TruncatedFile) as caught:
        read_header(write(tmp_path / "model.safetensors", header))
    assert len(str(caught.value)) < 1000


def test_an_absurd_length_reads_nothing(tmp_path: Path) -> None:
    """A sparse file of a terabyte whose header claims to be most of it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 39))
    os.truncate(path, 1 << 40)
    before = time.process_time()
    with pytest.raises(TruncatedFile, match=f"header has {1 << 39} bytes; at most {MAX_HEADER_BYTES} are read"):
        read_header(path)
    assert time.process_time() - before < 0.5
    path.write_bytes(struct.pack("<Q", (1 << 64) - 1))
    with pytest.raises(TruncatedFile, match="ends inside its header"):
        read_header(path)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        read_header(tmp_path / "none")
    with pytest.raises(UnreadableFile, match="this is a folder"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match="pipe"):
        read_header(tmp_path / "pipe")  # and does not wait for somebody to write
    with pytest.raises(UnreadableFile, match="too long"):
        read_header(tmp_path / ("a" * 300))


@given(
    header=st.binary(max_size=200)
    | st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "BF16", "I8", "F4", "F6_E2M3", "F5"]) | st.none(),
                "shape": st.lists(st.integers(-1, 6) | st.integers(), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 48) | st.integers(), min_size=1, max_size=3),
            },
        ),
        max_size=3,
    ),
    data_bytes=st.integers(0, 48),
)
@example(header={"a": ENTRY}, data_bytes=24)
@example(header={}, data_bytes=0)
def test_what_is_accepted_the_library_opens(
    tmp_path_factory: pytest.TempPathFactory, header: object, data_bytes: int
) -> None:
    path = write(tmp_path_factory.mktemp("header") / "file", header, data_bytes)
    try:
        found = read_header(path)
    except CheckpointError as error:
        assert error.remedy  # noqa: PT017  what is raised otherwise is the failure
        return
    # Only of parts of a byte, of which no weight of ours is made, may it think otherwise.
    parts = any(each.dtype.startswith(("F4", "F6")) for each in found.values())
    with suppress(SafetensorError) if parts else nullcontext(), safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == set(found)
        for name in found:
            assert tuple(opened.get_slice(name).get_shape()) == found[name].shape
