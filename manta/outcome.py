"""How a command ends: exit code 0 done, 1 failed, 2 bad input, 130 interrupted; always one message, no traceback."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import typer

from spec.outcome import INTERRUPTED, printable, status_of, traceback_wanted, words_of


@contextmanager
def plain_errors() -> Generator[None]:
    """Turns what is raised inside into a message on standard error and an exit code.

    What users give raises ValueErrors (SpecError, a bad checkpoint) that say what to do: exit code 2. The rest is
    exit code 1. With MANTA_TRACEBACK=1 in the environment the exception passes through instead.

    Raises:
        typer.Exit: something was raised inside.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if traceback_wanted():
            raise
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(printable(words_of(error)), err=True)
        raise typer.Exit(status_of(error)) from None


@contextmanager
def sigterm_is_ctrl_c() -> Generator[None]:
    """Inside, SIGTERM (what `docker stop` and systemd send) does what Ctrl-C does, so that clean-up runs.

    Ray installs a handler of its own while it starts; enter this again after that.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
