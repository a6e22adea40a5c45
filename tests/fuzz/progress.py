"""Shows how far the campaign is: a line that changes on a terminal, a line for each part elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests.fuzz.outcome import Outcome


class Progress:
    """A context; a part is begun, updated and ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._began_s = self._share_s = 0.0

    def begin(self, name: str, share_s: float) -> None:
        """Says which part is run, and for how long."""
        self._began_s, self._share_s = time.monotonic(), share_s
        self.update(name, 0, "starting")

    def update(self, name: str, executions: int, coverage: str) -> None:
        """Shows what a part has done so far."""
        if self._live is not None:
            spent_s = time.monotonic() - self._began_s
            self._live.update(
                Text(f"{name}: {spent_s:.0f} of {self._share_s:.0f} s, {executions:,} inputs, {coverage}")
            )

    def end(self, outcome: Outcome) -> None:
        """Shows what a part has done in all."""
        found = f"{len(outcome.findings)} FOUND" if outcome.findings else "nothing found"
        words = f"{outcome.name}: {outcome.executions:,} inputs in {outcome.seconds:.0f} s, {outcome.coverage}, {found}"
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()
