"""A prompt from standard input, which may be closed, and need not end."""

import io
import sys

import pytest

from manta import standard_input


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="which is closed"):
        standard_input.standard_input()


def test_standard_input_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_input, "MAX_CHARS", 10)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a" * 10))
    assert standard_input.standard_input() == "a" * 10
    monkeypatch.setattr(sys, "stdin", io.StringIO("a" * 11))
    with pytest.raises(ValueError, match="over 10 characters"):
        standard_input.standard_input()
