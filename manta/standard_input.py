"""A prompt from standard input."""

import sys

MAX_CHARS = 1 << 26  # far more than any model takes; standard input may have no end


def standard_input() -> str:
    """Returns what standard input holds.

    Raises:
        ValueError: It is closed, or holds over MAX_CHARS; a UnicodeError: it is no text.
    """
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - closed, as by `<&-`
        raise ValueError("- stands for standard input, which is closed; give the prompt as an argument, or by a pipe")
    text = sys.stdin.read(MAX_CHARS + 1)
    if len(text) > MAX_CHARS:
        raise ValueError(f"standard input holds over {MAX_CHARS} characters: no model takes so many")
    return text
