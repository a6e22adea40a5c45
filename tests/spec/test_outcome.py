"""What errors show of what somebody else has written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.outcome import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("experts 0-3 serve\nagain", "experts 0-3 serve\nagain"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("line\rover", "line\\rover"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("größer, 模型 \\n", "größer, 模型 \\n"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_else_is_left(text: str) -> None:
    assert all(line.isprintable() for line in printable(text).split("\n"))
