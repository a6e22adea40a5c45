"""The byte targets hold for their corpora, and the machinery around them finds what is wrong and says so."""

import random

import pytest

from tests.fuzz import bytes as byte_targets
from tests.fuzz.bytes import BUILD, CORPUS, fuzz, replay
from tests.fuzz.execute import HAS_ATHERIS, signature
from tests.fuzz.guard import Guarded, TooMuchMemory
from tests.fuzz.material import Material
from tests.fuzz.reduce import reduced
from tests.fuzz.targets import TARGETS

with_atheris = pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed here")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds(name: str) -> None:
    assert replay(name) >= 2


def test_no_corpus_is_without_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()


@with_atheris
def test_a_fault_is_found_and_its_input_made_small(seed: int) -> None:
    seen: list[int] = []
    outcome = fuzz("tests.fuzz.broken.raises", 20, seed % 1000 + 1, lambda name, count, reached: seen.append(count))
    (finding,) = outcome.findings
    assert finding.words.startswith("KeyError in raises.py, one, line 6\n")
    assert finding.path is not None
    assert len(finding.path.read_bytes()) == 4
    assert finding.path.is_relative_to(BUILD)
    assert outcome.executions > 100
    assert seen
    assert " edges" in outcome.coverage


@with_atheris
def test_memory_is_a_fault(seed: int) -> None:
    outcome = fuzz("tests.fuzz.broken.hoards", 10, seed % 1000 + 1, lambda name, count, reached: None)
    (finding,) = outcome.findings
    assert "TooMuchMemory" in finding.words
    assert finding.path is not None
    assert finding.path.read_bytes() == b"M"


def test_without_atheris_the_corpus_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_targets, "HAS_ATHERIS", False)
    outcome = fuzz("stops", 1, 1, lambda name, count, reached: None)
    assert outcome.executions == len(list((CORPUS / "stops").iterdir()))
    assert not outcome.findings
    assert "atheris is not installed" in outcome.coverage


def test_what_is_given_back_counts_as_held() -> None:
    guarded = Guarded(lambda data: bytes(len(data) << 20) and None, max_mib=64)
    guarded(b"x" * 8)
    with pytest.raises(TooMuchMemory, match="64 are allowed"):
        Guarded(lambda data: bytearray(b"\1") * (len(data) << 20) and None, max_mib=64)(b"x" * 128)


def test_pieces_that_do_not_matter_are_left_out(seed: int) -> None:
    noise = bytes(random.Random(seed).choices(b"abc", k=200))
    at = seed % 200
    found = reduced(
        noise[:at] + b"X" + noise[at:] + b"Y", lambda data: "XY" if b"X" in data and b"Y" in data else None, 9
    )
    assert (found.data, found.failure) == (b"XY", "XY")
    assert reduced(noise, lambda data: None, 9) == type(found)(noise, None)


def test_failures_are_told_apart_by_where_they_are_raised() -> None:
    def of(data: bytes) -> str:
        try:
            int(data) if data else {}["x"]
        except (KeyError, ValueError) as error:
            return signature(error)
        raise AssertionError

    assert of(b"").startswith("KeyError in test_bytes.py, of, line ")
    assert of(b"a").startswith("ValueError in test_bytes.py, of, line ")


def test_material_ends_in_zeros() -> None:
    material = Material(b"\x03abcd\x07")
    assert material.piece() == b"abc"
    assert (material.number(256), material.number(5), material.left) == (ord("d"), 2, 0)
    assert (material.number(1000), material.flag(), material.rest()) == (0, False, b"")
