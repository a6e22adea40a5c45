"""How a command ends: exit code 0 done, 1 failed, 2 bad input, 130 interrupted; always one message, no traceback."""

import os
import select
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from spec.outcome import INTERRUPTED, printable, status_of, traceback_wanted, words_of

# What `docker stop` and systemd send, and what a terminal sends that is closed.
ENDING = (signal.SIGTERM, signal.SIGHUP)
STDOUT = 1


@contextmanager
def plain_errors() -> Generator[None]:
    """Turns what is raised inside into a message on standard error and an exit code.

    What users give raises ValueErrors (SpecError, a bad checkpoint) that say what to do: exit code 2. The rest is
    exit code 1. With MANTA_TRACEBACK=1 in the environment the exception passes through instead.

    Raises:
        typer.Exit: something was raised inside.
        BrokenPipeError: whoever read the output has left, as `head` does; click then ends the command without a word.
    """
    try:
        _check_folder()
        yield
    except KeyboardInterrupt:
        say_last("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if traceback_wanted() or (isinstance(error, BrokenPipeError) and _reader_has_left()):
            raise
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(printable(words_of(error)), err=True)
        raise typer.Exit(status_of(error)) from None


def say_last(text: str) -> None:
    """Says something at the end. The terminal, or `tee`, may have gone first: that is no reason to end otherwise."""
    with suppress(OSError):
        typer.echo(text, err=True)


@contextmanager
def signals_are_ctrl_c() -> Generator[None]:
    """Inside, ENDING do what Ctrl-C does, so that clean-up runs; but SIGHUP not under `nohup`, which ignores it.

    Ray installs a handler of its own while it starts; enter this again after that. A terminal is closed once: a SIGHUP
    that follows (the shell sends one, and the kernel another when the shell ends) does not interrupt the clean-up.
    """
    taken = [number for number in ENDING if not (number == signal.SIGHUP and _is_ignored(number))]
    before = {number: signal.signal(number, _interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            if not (number == signal.SIGHUP and _is_ignored(number)):
                signal.signal(number, handler)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _check_folder() -> None:
    """Raises ValueError if the present folder has been removed: no relative path leads anywhere then, nor Ray's."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the folder that this was started in has been removed; change to another one") from None


def _reader_has_left() -> bool:
    """Whether it is standard output, a pipe, that nobody reads any more."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
