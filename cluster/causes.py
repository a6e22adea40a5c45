"""What went wrong, in the words of whatever failed: without the remote traceback that Ray and Serve put around it."""

import re

from ray.exceptions import RayActorError, RayTaskError

# The line of a traceback that names the exception: `checkpoint.errors.MissingTensor: model.safetensors: ...`.
EXCEPTION_LINE = re.compile(r"^(?P<name>[A-Za-z_][\w.]*?): (?P<text>\S.*)$")
EXIT_DETAIL = re.compile(r"Worker exit detail: (?P<text>[^.\n]+)")
TRACEBACK_PARTS = ("Traceback", "During handling", "The above exception")


def cause_of(error: BaseException) -> str:
    """Returns the message of the exception at the bottom of `error`, as one line."""
    if isinstance(error, RayTaskError):
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException) and cause is not error:
            return cause_of(cause)
        return cause_in(str(error))
    if isinstance(error, RayActorError):
        return _actor_death(str(error))
    return _one_line(str(error)) or type(error).__name__


def cause_in(report: str) -> str:
    """Returns the message of the last exception in a report that holds tracebacks, as one line.

    >>> cause_in("it failed. Error:\\nTraceback (most recent call last):\\n  File x\\na.b.BadFile: x: cut off.\\n")
    'x: cut off.'
    """
    lines = report.splitlines()
    for index in range(len(lines) - 1, -1, -1):
        match = EXCEPTION_LINE.match(lines[index])
        if match and not match["text"].startswith(TRACEBACK_PARTS):
            return _one_line("\n".join([match["text"], *_continued(lines[index + 1 :])]))
    return _one_line(report)


def _continued(lines: list[str]) -> list[str]:
    """Returns the rest of a message of several lines: up to the next traceback."""
    for index, line in enumerate(lines):
        if line.startswith((*TRACEBACK_PARTS, "ray::", "  File ")):
            return lines[:index]
    return lines


def _actor_death(text: str) -> str:
    detail = EXIT_DETAIL.search(text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "the actor died")
    return f"{first.rstrip('.')} ({detail['text'].strip()})" if detail else first


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
