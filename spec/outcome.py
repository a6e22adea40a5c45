"""How a command ends: exit status 0 done, 1 failed, 2 bad input, 130 interrupted; and the words for what went wrong."""

import os

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
TRACEBACK_VARIABLE = "MANTA_TRACEBACK"


def traceback_wanted() -> bool:
    """Whether errors are to be shown with where they come from."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))


def status_of(error: Exception) -> int:
    """Returns the exit status: what users give raises ValueErrors (SpecError, a bad checkpoint)."""
    return BAD_INPUT if isinstance(error, ValueError) else FAILED


def words_of(error: Exception) -> str:
    """Returns what to say: the message, if it was written for users; else the type too, and how to see more."""
    text = str(error).strip() or "no message"
    if isinstance(error, ValueError | OSError | RuntimeError | TimeoutError):
        return text
    return f"{type(error).__name__}: {text} ({TRACEBACK_VARIABLE}=1 shows where)"


def printable(text: str) -> str:
    """Text with everything that a terminal would obey instead of showing it written out: `\\x1b`, not an escape.

    Messages may quote what somebody else has written: names in a checkpoint, say.
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)
