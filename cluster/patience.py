"""How long others are waited for, and what a command says when that was in vain."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SETTING = "--timeout"
TIMEOUT_S = 60.0  # of `manta status`, `plan` and `down`, unless told otherwise


class Deadline:
    """The end of a command's patience.

    Args:
        timeout_s: From now on.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._ends_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """What is left of it; not negative."""
        return max(0.0, self._ends_s - time.monotonic())

    def late(self, what: str, remedy: str) -> TimeoutError:
        """Returns the error of having waited in vain.

        Args:
            what: What has not happened.
            remedy: What to do next.
        """
        return TimeoutError(f"{what} within {self.timeout_s:g} s ({SETTING}); {remedy}")

    def answer(self, question: Callable[[], T], what: str, remedy: str) -> T:
        """Returns what a question that may block for ever is answered.

        Raises:
            TimeoutError: It was not answered in time.
        """
        try:
            return answered(question, self.left_s)
        except Unanswered:
            raise self.late(what, remedy) from None


class Unanswered(TimeoutError):
    """A question was not answered in time."""


def answered(question: Callable[[], T], timeout_s: float) -> T:
    """Returns what a question that may block for ever is answered, as some of Ray's and Serve's may.

    Raises:
        Unanswered: It was not answered in time. The thread that asks is left behind, and holds up no end.
    """
    answers: list[T] = []
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            failures.append(error)

    asking = threading.Thread(target=ask, name="manta-question", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if failures:
        raise failures[0]
    if not answers:
        raise Unanswered(f"no answer within {timeout_s:g} s")
    return answers[0]
