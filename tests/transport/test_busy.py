"""The busy clock: what counts as busy, seen from another thread."""

import threading
import time

import pytest

from transport.busy import MIN_SPAN_S, BusyClock


class Worker:
    """A thread that computes or sleeps, as it is told."""

    def __init__(self, clock: BusyClock) -> None:
        self._clock = clock
        self.computes = self.ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._clock.follow_thread()
        while not self.ends:
            if not self.computes:
                time.sleep(0.005)

    def end(self) -> None:
        self.ends = True
        self._thread.join()


def test_waiting_is_not_busy_and_computing_is() -> None:
    clock = BusyClock()
    assert (clock.busy_s, clock.utilization()) == (0.0, 0.0)
    worker = Worker(clock)
    time.sleep(MIN_SPAN_S)
    idle = clock.utilization()
    before_s, started_s = clock.busy_s, time.monotonic()
    worker.computes = True
    time.sleep(MIN_SPAN_S)
    busy, worked_s = clock.utilization(), clock.busy_s - before_s
    worker.end()
    assert idle < 0.2
    assert idle < busy <= 1.0
    assert 0.1 < worked_s <= time.monotonic() - started_s
    assert clock.busy_s >= before_s + worked_s  # also when the thread is gone


def test_who_asks_often_gets_the_share_of_a_whole_span(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now_s, busy_s = BusyClock(), [time.monotonic()], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(BusyClock, "busy_s", property(lambda self: busy_s[0]))
    for expected, computed_s, waited_s in ((0.5, 1.0, 1.0), (0.5, 0.1, 0.0), (0.5, 0.1, 0.0), (0.25, 0.3, 1.5)):
        now_s[0] += computed_s + waited_s
        busy_s[0] += computed_s
        assert clock.utilization() == pytest.approx(expected, abs=0.01)
