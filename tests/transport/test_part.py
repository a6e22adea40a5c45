"""A part that cannot be announced is no part that waits for ever: whoever checks it hears why, and replaces it."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from transport.part import Part


def part_of(wait_ready: Any, announced: threading.Event, ended: threading.Event) -> Part:
    server: Any = SimpleNamespace(
        run=lambda: ended.wait(30.0),
        stop=ended.set,
        update=lambda table: None,
        wait_ready=wait_ready,
        address=None,
        snapshot=dict,
        lives=lambda: True,
    )
    membership: Any = SimpleNamespace(
        watch=lambda on_table: None,
        announce=lambda *given: announced.set(),
        wait_announced=lambda timeout_s: announced.wait(0.01),
        leave=lambda: None,
    )
    return Part("router", server, membership)


def test_one_that_cannot_be_announced_fails_its_check() -> None:
    def broken(timeout_s: float) -> bool:
        raise ZeroDivisionError("nobody foresaw this")

    ended = threading.Event()
    part = part_of(broken, threading.Event(), ended)
    asyncio.run(asyncio.wait_for(part.start(), 30.0))
    with pytest.raises(RuntimeError, match="the router could not be announced: ZeroDivisionError"):
        part.check()
    part.leave()


def test_one_that_is_announced_is_well() -> None:
    looks, ended = iter([False, True]), threading.Event()
    part = part_of(lambda timeout_s: next(looks), threading.Event(), ended)
    asyncio.run(asyncio.wait_for(part.start(), 30.0))
    part.check()
    part.leave()
