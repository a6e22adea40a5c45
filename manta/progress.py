"""Shows how far a service has come while it starts: live on a terminal, one line a stage elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Step(Protocol):
    """What a start reports: a stage in words, and how much of it is done. `total` 0: there is nothing to count."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


class StartDisplay:
    """A context whose `update` takes each step. Every stage gets one line; the last one stays open until the end."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console = console
        self._clock = clock
        self._started_s = clock()
        self._stage = ""
        self._task: TaskID | None = None
        self._live = (
            Progress(
                SpinnerColumn(finished_text="✓"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                console=console,
            )
            if console.is_terminal
            else None
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the display was made."""
        return self._clock() - self._started_s

    def update(self, step: Step) -> None:
        """Shows one step. May be called from any thread."""
        if step.stage != self._stage:
            self._finish_stage()
            self._stage = step.stage
            self._begin_stage(step)
        if self._live is not None and self._task is not None:
            count = f"{step.done}/{step.total}" if step.total else ""
            self._live.update(self._task, completed=step.done, total=step.total or None, count=count)

    def say(self, text: str) -> None:
        """Prints something that stays, above the stages that are still to come."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _begin_stage(self, step: Step) -> None:
        if self._live is None:
            self._console.print(f"{self.elapsed_s:6.1f} s  {step.stage}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._task = self._live.add_task(step.stage, total=step.total or None, count="")

    def _finish_stage(self) -> None:
        if self._live is not None and self._task is not None:
            total = self._live.tasks[-1].total or 1
            self._live.update(self._task, completed=total, total=total)
            self._task = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_stage()
        if self._live is not None:
            self._live.stop()
