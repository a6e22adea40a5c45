"""A minute of the campaign finds nothing: status and memory are judged, time is not."""

from pathlib import Path

import pytest

from tests.fuzz.command import KINDS, NOT_IN_A_MINUTE, main


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_nothing(kind: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minutes, parts = str(1 / len(KINDS)), ",".join(KINDS[kind].keys() - NOT_IN_A_MINUTE)
    status = main(
        ["--minutes", minutes, "--only", parts, "--seed", str(seed % 10**6 + 1), "--json", str(tmp_path / "out")]
    )
    assert status == 0, capsys.readouterr().out
