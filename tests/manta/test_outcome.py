"""SIGTERM ends a command as Ctrl-C does, also after something else took the signal over."""

import os
import signal

import pytest
import typer

from manta.outcome import INTERRUPTED, plain_errors, sigterm_is_ctrl_c


def terminate_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), sigterm_is_ctrl_c():
        terminate_this_process()


def test_entering_again_wins_over_a_handler_installed_in_between() -> None:
    with sigterm_is_ctrl_c():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt), sigterm_is_ctrl_c():
            terminate_this_process()


def test_the_handler_from_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_is_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_command_exits_with_130() -> None:
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise KeyboardInterrupt
    assert caught.value.exit_code == INTERRUPTED
