"""Writes the table of request fields into docs/api.md from the code: `python -m serving.fields_reference`."""

import json
from collections.abc import Iterator
from pathlib import Path

from serving.fields import NO_EFFECT, REFUSED
from serving.schemas import ChatBody, CompletionBody

BODIES = {"completions": CompletionBody, "chats": ChatBody}
TARGET = Path(__file__).parents[1] / "docs" / "api.md"
BEGIN = "<!-- Generated from serving/schemas.py and serving/fields.py by `make docs`; a test keeps it up to date. -->\n"
END = "<!-- End of what is generated. -->\n"


def honoured() -> dict[str, str]:
    """Each field that has an effect, and what it does; where the endpoints differ, what it does at each."""
    words = {
        endpoint: {name: " ".join((field.description or "").split()) for name, field in body.model_fields.items()}
        for endpoint, body in BODIES.items()
    }
    names = dict.fromkeys(name for fields in words.values() for name in fields)
    return {name: _meaning(name, words) for name in names}


def _meaning(name: str, words: dict[str, dict[str, str]]) -> str:
    found = {endpoint: fields[name] for endpoint, fields in words.items() if name in fields}
    if len(found) == len(words) and len(set(found.values())) == 1:
        return next(iter(found.values()))
    return " ".join(f"*{endpoint}*: {text}" for endpoint, text in found.items())


def table() -> str:
    """All fields, as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| field | | |"
    yield "| --- | --- | --- |"
    for name, meaning in honoured().items():
        yield f"| `{name}` | honoured | {meaning} |"
    for name, refused in REFUSED.items():
        neutral = " or ".join(f"`{json.dumps(value)}`" for value in refused.neutral)
        at = " in chats" if name in CompletionBody.model_fields else ""
        yield f"| `{name}` | refused{at}{neutral and ', but for ' + neutral} | {_sentence(refused.instead)} |"
    for name, reason in NO_EFFECT.items():
        yield f"| `{name}` | no effect | {_sentence(reason)} |"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def reference(page: str) -> str:
    """The page with the table as it should be. Raises ValueError if it lacks the marks of its beginning and end."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{TARGET} lacks the marks between which the table is written: {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    """Writes the table."""
    TARGET.write_text(reference(TARGET.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
