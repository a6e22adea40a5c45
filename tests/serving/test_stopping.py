"""Stop strings in pieces give what a search of the whole text gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.stopping import StopFinder, StopTable


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Looks at every end, first to last; of the stops that end there, the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.booleans(),
)
def test_equals_a_search_of_the_whole_text(pieces: list[str], stops: list[str], include: bool) -> None:
    finder = StopFinder(StopTable(stops), include)
    shown, found = "", None
    for piece in pieces:
        stopped = finder.push(piece)
        shown += stopped.text
        found = stopped.stop
        if found is not None:
            break
    else:
        shown += finder.finish()
    assert (shown, found) == naive("".join(pieces), stops, include)


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=5))
def test_nothing_is_held_that_cannot_become_a_stop(text: str, stop: str) -> None:
    finder = StopFinder(StopTable([stop]))
    shown = ""
    for char in text:
        stopped = finder.push(char)
        shown += stopped.text
        if stopped.stop:
            return
    held = text[len(shown) :]
    assert stop.startswith(held)
    assert not any(stop.startswith(text[start:]) for start in range(len(shown)))


def test_the_docstrings_example() -> None:
    finder = StopFinder(StopTable(["END"]))
    assert [finder.push(piece).text for piece in ("a E", "N", "Dx")] == ["a ", "", ""]
