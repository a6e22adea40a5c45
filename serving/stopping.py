"""Stop strings in a stream: found across token boundaries, never shown even in part.

The rule, which does not depend on how the text was cut into pieces: the match that ends first wins; of two that
end together, the longer. Text that could still become a stop string is held back.
Example, stop "END": pieces "a E", "N", "Dx" give "a ", "", and then a stop whose text is "".
"""

from collections.abc import Sequence
from dataclasses import dataclass

START = 0  # the state in which no stop string has begun


@dataclass(frozen=True, slots=True)
class Stopped:
    """`text` is safe to show; `stop` is the stop string that was found, if one was."""

    text: str
    stop: str | None = None


class StopTable:
    """The automaton of Aho and Corasick for some stop strings; one is shared by all choices of a request.

    A state is the longest end of a text that begins a stop string, so that a character costs the same however many stop
    strings there are and however they begin. There are as many states as characters in all of them, plus one.
    """

    __slots__ = ("_behind", "_next", "depth", "first_chars", "stop")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty, and neither is any of them."""
        self.first_chars = frozenset(stop[0] for stop in stops)
        self.depth = [0]  # by state: the number of characters that it stands for
        self.stop: list[str | None] = [None]  # by state: the longest stop string that ends here
        self._next: dict[tuple[int, str], int] = {}  # (state, character) -> the state that is one longer
        self._behind = [START]  # by state: the next shorter one that its text ends in
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while (following := self._next.get((state, char))) is None and state != START:
            state = self._behind[state]
        return START if following is None else following

    def _add(self, stop: str) -> None:
        state = START
        for depth, char in enumerate(stop, start=1):
            following = self._next.setdefault((state, char), len(self.depth))
            if following == len(self.depth):
                self.depth.append(depth)
                self.stop.append(None)
                self._behind.append(START)
            state = following
        self.stop[state] = stop

    def _link(self) -> None:
        """Shorter states first: what is behind a state is found from what is behind the one that it grew out of."""
        for (state, char), following in sorted(self._next.items(), key=lambda edge: self.depth[edge[1]]):
            if state != START:
                self._behind[following] = self.step(self._behind[state], char)
            if self.stop[following] is None:
                self.stop[following] = self.stop[self._behind[following]]


class StopFinder:
    """Searches one growing text for the stop strings of a table."""

    __slots__ = ("_held", "_include", "_state", "_table")

    def __init__(self, table: StopTable, include_stop: bool = False) -> None:
        self._table = table
        self._include = include_stop
        self._held = ""
        self._state = START

    def push(self, delta: str) -> Stopped:
        """Adds text; after a Stopped with `stop` set, nothing more may be pushed."""
        table, state = self._table, self._state
        if state == START and table.first_chars.isdisjoint(delta):
            return Stopped(delta)
        text = self._held + delta
        for end, char in enumerate(delta, start=len(self._held) + 1):
            state = table.step(state, char)
            if (stop := table.stop[state]) is not None:
                return Stopped(text[: end if self._include else end - len(stop)], stop)
        self._state = state
        num_shown = len(text) - table.depth[state]
        self._held = text[num_shown:]
        return Stopped(text[:num_shown])

    def finish(self) -> str:
        """The text held back for a stop string that never came."""
        text, self._held, self._state = self._held, "", START
        return text
