"""Shows how far a run has come: a bar on a terminal, and a line for each phase and disturbance anywhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.faults.disturbances import Happening
from benchmarks.faults.load import Answer
from benchmarks.load import RequestRecord


class Display:
    """A context that is told of each phase, request and disturbance."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, refresh_per_second=2, console=console, transient=True)
        self._bar: TaskID | None = None
        self._phase = ""
        self._began_s = time.perf_counter()
        self._num_requests = self._num_failed = 0

    def phase(self, name: str, total: int | None = None) -> None:
        """The next phase begins; `total` requests (or disturbances) make it up. None: time does."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._phase, self._num_requests, self._num_failed = name, 0, 0
        self._bar = self._progress.add_task(name, total=total)
        self._line(name)

    def request(self, answer: Answer) -> None:
        """A request has ended: one of those that make up the phase."""
        del answer
        self._advance()

    def request_beside(self, answer: Answer) -> None:
        """A request has ended, of a phase that something else makes up."""
        self.record(answer.record)

    def record(self, record: RequestRecord) -> None:
        """The same, of a request that belongs to no client's list."""
        self._num_requests += 1
        self._num_failed += record.error is not None
        if self._bar is not None:
            words = f"{self._phase} ({self._num_requests} requests, {self._num_failed} failed)"
            self._progress.update(self._bar, description=words)

    def happening(self, happening: Happening) -> None:
        """A disturbance is over."""
        what = f"{happening.kind} ({happening.note})"
        came = happening.failure if happening.took_s is None else f"recovered after {happening.took_s:.1f} s"
        self._line(f"{what}: {came}; {self._num_requests} requests so far, {self._num_failed} failed")
        self._advance()

    def _advance(self) -> None:
        if self._bar is not None:
            self._progress.advance(self._bar)

    def _line(self, text: str) -> None:
        elapsed_s = time.perf_counter() - self._began_s
        self._progress.console.print(f"{elapsed_s:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
