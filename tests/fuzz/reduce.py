"""Makes an input smaller for as long as it fails the same way."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Reduction:
    """The smallest input found, and how it fails; None: the one that was given does not."""

    data: bytes
    failure: str | None


def reduced(data: bytes, failure: Callable[[bytes], str | None], limit_s: float) -> Reduction:
    """Leaves out pieces, large ones first, until none can go or the time is over.

    Args:
        failure: What goes wrong with an input, in words that are equal for the same fault; None if nothing does.
    """
    wanted = failure(data)
    deadline_s = time.monotonic() + limit_s
    while wanted is not None:
        smaller = next((one for one in _without_a_piece(data, deadline_s) if failure(one) == wanted), None)
        if smaller is None:
            break
        data = smaller
    return Reduction(data, wanted)


def _without_a_piece(data: bytes, deadline_s: float) -> Iterator[bytes]:
    size = len(data) // 2
    while size:
        for start in range(0, len(data), size):
            if time.monotonic() > deadline_s:
                return
            yield data[:start] + data[start + size :]
        size //= 2
