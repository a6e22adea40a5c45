"""Stop strings in a stream: found across token boundaries, never shown even in part.

The rule, which does not depend on how the text was cut into pieces: the match that ends first wins; of two that
end together, the longer. Text that could still become a stop string is held back.
Example, stop "END": pieces "a E", "N", "Dx" give "a ", "", and then a stop whose text is "".
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stopped:
    """`text` is safe to show; `stop` is the stop string that was found, if one was."""

    text: str
    stop: str | None = None


class StopFinder:
    """Searches one growing text for `stops` (non-empty strings)."""

    __slots__ = ("_held", "_include", "_lengths_by_last_char", "_stops")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_stop
        self._held = ""
        self._lengths_by_last_char = _prefix_lengths_by_last_char(self._stops)

    def push(self, delta: str) -> Stopped:
        """Adds text; after a Stopped with `stop` set, nothing more may be pushed."""
        text = self._held + delta
        found = self._first_match(text)
        if found is not None:
            start, stop = found
            return Stopped(text[: start + len(stop) if self._include else start], stop)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return Stopped(text[: len(text) - num_held])

    def finish(self) -> str:
        """The text held back for a stop string that never came."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(text.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in matches if start >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _num_held(self, text: str) -> int:
        if not text:
            return 0
        for length, prefix in self._lengths_by_last_char.get(text[-1], ()):
            if text.endswith(prefix):
                return length
        return 0


def _prefix_lengths_by_last_char(stops: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """Every proper prefix of every stop string by its last character, longest first.

    Most text ends in a character that no prefix ends in, so that holding back costs one dictionary look-up.
    """
    prefixes = {stop[:length] for stop in stops for length in range(1, len(stop))}
    table: dict[str, list[tuple[int, str]]] = {}
    for prefix in sorted(prefixes, key=len, reverse=True):
        table.setdefault(prefix[-1], []).append((len(prefix), prefix))
    return table
