"""The progress display on a terminal and in a log."""

import io
from dataclasses import dataclass

from rich.console import Console

from manta.progress import StartDisplay


@dataclass(frozen=True)
class Step:
    stage: str
    done: int = 0
    total: int = 0


STEPS = [Step("starting Ray"), Step("loading experts", 1, 2), Step("loading experts", 2, 2), Step("warming up")]


def shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    times_s = iter(range(100))
    with StartDisplay(console, clock=lambda: next(times_s)) as display:
        for step in STEPS:
            display.update(step)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_one_line_a_stage() -> None:
    assert shown(terminal=False) == "   1.0 s  starting Ray\n   2.0 s  loading experts\n   3.0 s  warming up\n"


def test_a_terminal_ends_with_every_stage_ticked() -> None:
    last_frame = shown(terminal=True).rsplit("✓ starting Ray", maxsplit=1)[-1]
    assert "✓ loading experts" in last_frame
    assert "✓ warming up" in last_frame
    assert "2/2" in last_frame
