"""How a command ends: SIGTERM and a closed terminal as Ctrl-C does, and nobody who listens any more."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer

from manta.outcome import ENDING, INTERRUPTED, plain_errors, say_last, signals_are_ctrl_c


def terminate_this_process(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_what_ends_a_command_interrupts(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), signals_are_ctrl_c():
            terminate_this_process(number)
    finally:
        signal.signal(number, before)


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_are_ctrl_c():
            terminate_this_process(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_is_closed_once() -> None:
    """The shell says so, and when it ends itself the kernel, in the middle of the clean-up."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with signals_are_ctrl_c():
            with pytest.raises(KeyboardInterrupt), signals_are_ctrl_c():
                terminate_this_process(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                terminate_this_process(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_entering_again_wins_over_a_handler_installed_in_between() -> None:
    with signals_are_ctrl_c():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt), signals_are_ctrl_c():
            terminate_this_process()


def test_the_handler_from_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_are_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_command_exits_with_130() -> None:
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise KeyboardInterrupt
    assert caught.value.exit_code == INTERRUPTED


def test_last_words_that_nobody_hears_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    nobody = os.fdopen(writable, "w")
    monkeypatch.setattr(sys, "stderr", nobody)
    say_last("Stopped.")
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise KeyboardInterrupt
    with suppress(BrokenPipeError):  # what is left in it goes nowhere
        nobody.close()
    assert caught.value.exit_code == INTERRUPTED


WRITES = """
import time, typer
from manta.outcome import plain_errors
app = typer.Typer()
@app.command()
def write() -> None:
    with plain_errors():
        while True:
            typer.echo("a line")
app()
"""


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    """As in `manta status | head -1`."""
    command = [sys.executable, "-c", WRITES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


def test_another_broken_pipe_is_an_error_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), plain_errors():
        raise BrokenPipeError("the other process is gone")
    assert "the other process is gone" in capsys.readouterr().err


def test_a_folder_that_was_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(typer.Exit) as caught, plain_errors():
        pytest.fail("it was run")
    assert caught.value.exit_code == 2
