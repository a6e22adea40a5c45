"""Whether a data plane's thread lives, asked from outside: one that waits, computes, or hangs."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

import transport.pulse
from transport.busy import MIN_SPAN_S, BusyClock
from transport.loop import Loop
from transport.pulse import Pulse


class DataPlane:
    """A thread that turns a loop, as an expert's does."""

    def __init__(self) -> None:
        self.loop, clock = Loop(), BusyClock()
        self.pulse = Pulse(self.loop, clock)
        self.released = threading.Event()
        self._thread = threading.Thread(target=lambda: (clock.follow_thread(), self.loop.run_forever()))
        self._thread.start()

    def compute(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Computes, without a turn of the loop, until it is released."""
        self._begin(lambda: _compute_until(self.released, on_progress))

    def hang(self) -> None:
        """Waits for something that does not come, until it is released."""
        self._begin(self.released.wait)

    def _begin(self, work: Callable[[], object]) -> None:
        begun = threading.Event()
        self.loop.post(lambda: (begun.set(), work()))
        assert begun.wait(30.0)

    def end(self) -> None:
        self.released.set()
        self.loop.stop()
        self._thread.join()
        self.loop.close()


def _compute_until(released: threading.Event, on_progress: Callable[[], None]) -> None:
    while not released.is_set():
        sum(range(1000))
        on_progress()


@pytest.fixture
def data_plane() -> Iterator[DataPlane]:
    started = DataPlane()
    yield started
    started.end()


def test_a_thread_that_waits_for_messages_lives(data_plane: DataPlane) -> None:
    started_s = time.monotonic()
    for _ in range(100):
        assert data_plane.pulse.beats()
    assert time.monotonic() - started_s < 20.0, "the answer comes at once"


def test_a_thread_that_computes_lives(data_plane: DataPlane) -> None:
    data_plane.compute()
    time.sleep(MIN_SPAN_S)
    for _ in range(3):
        assert data_plane.pulse.beats()


def test_a_thread_that_hangs_does_not_and_may_come_back(data_plane: DataPlane) -> None:
    assert data_plane.pulse.beats()
    data_plane.hang()
    time.sleep(MIN_SPAN_S)
    data_plane.pulse.beats()  # it may have computed before it hung
    time.sleep(MIN_SPAN_S)
    for _ in range(3):
        assert not data_plane.pulse.beats()
    data_plane.released.set()
    deadline_s = time.monotonic() + 30.0
    while not data_plane.pulse.beats():
        assert time.monotonic() < deadline_s, "it comes back"


def test_a_thread_that_computes_without_end_hangs(data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.pulse, "MAX_COMPUTING_S", 0.2)
    assert data_plane.pulse.beats()
    data_plane.compute()
    time.sleep(3 * MIN_SPAN_S)
    assert not data_plane.pulse.beats()


def test_who_says_that_a_long_computation_gets_on_lives(data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.pulse, "MAX_COMPUTING_S", 0.2)
    data_plane.compute(data_plane.pulse.note_progress)
    time.sleep(3 * MIN_SPAN_S)
    assert data_plane.pulse.beats()


def test_much_work_in_many_turns_is_not_computing_without_end(
    data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is answered late, but it is."""
    monkeypatch.setattr(transport.pulse, "MAX_COMPUTING_S", 1.0)
    monkeypatch.setattr(transport.pulse, "WAIT_S", 0.01)

    def compute_again() -> None:
        until_s = time.thread_time() + 0.1
        while time.thread_time() < until_s:
            sum(range(1000))
        if not data_plane.released.is_set():
            data_plane.loop.post(compute_again)

    data_plane.loop.post(compute_again)
    time.sleep(MIN_SPAN_S)
    for _ in range(20):
        assert data_plane.pulse.beats()
        time.sleep(0.1)
