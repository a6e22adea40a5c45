"""How a command ends: exit code 0 done, 1 failed, 2 bad input, 130 interrupted; always one message, no traceback."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import typer

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
TRACEBACK_VARIABLE = "MANTA_TRACEBACK"


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
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        typer.secho("error: ", fg="red", nl=False, err=True)
        typer.echo(_words(error), err=True)
        raise typer.Exit(BAD_INPUT if isinstance(error, ValueError) else FAILED) from None


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


def _words(error: Exception) -> str:
    text = str(error).strip() or "no message"
    if isinstance(error, ValueError | OSError | RuntimeError | TimeoutError):
        return text
    return f"{type(error).__name__}: {text} ({TRACEBACK_VARIABLE}=1 shows where)"
