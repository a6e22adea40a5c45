"""Stop strings are found where the rule says, however the text is cut, and nothing of them is shown."""

from serving.stopping import StopFinder, StopTable
from tests.fuzz.material import Material


def one(data: bytes) -> None:
    material = Material(data)
    include = material.flag()
    stops = [_text(material.take(1 + material.number(6))) for _ in range(1 + material.number(4))]
    stops = [stop for stop in stops if stop] or ["a"]
    pieces = [_text(material.take(1 + material.number(8))) for _ in range(64) if material.left]
    shown, stop = _stream(StopFinder(StopTable(stops), include), pieces)
    assert (shown, stop) == _expected("".join(pieces), stops, include)


def _text(data: bytes) -> str:
    """Text of few letters: stops and pieces that have much in common are the hard ones."""
    return "".join("abcé"[byte % 4] for byte in data)


def _stream(finder: StopFinder, pieces: list[str]) -> tuple[str, str | None]:
    shown = ""
    for piece in pieces:
        found = finder.push(piece)
        shown += found.text
        if found.stop is not None:
            return shown, found.stop
    return shown + finder.finish(), None


def _expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The rule, letter by letter: the match that ends first wins; of two that end together, the longer."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None
