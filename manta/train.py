"""`manta train` and `manta export`: shows progress, and says what to do next."""

import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.hosts import present_room
from cluster.ray_session import open_session
from manta.outcome import signals_are_ctrl_c
from training.ingest import Ingested
from training.progress import CHECKPOINT_FOLDER, newest_in
from training.resolve import run_folder
from training.running import Finished, Watch, run_training
from training.spec import TrainingSpec

LINE_EVERY_S = 10.0  # where there is no terminal


class TrainingDisplay:
    """A bar on a terminal; elsewhere a line now and then. A context."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self._console = console
        self._num_steps = num_steps
        self._held_out = ""
        self._said_s = float("-inf")
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "TrainingDisplay":
        self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._live.stop()

    def tokens(self, documents: int, tokens: int) -> None:
        """Documents and tokens were read."""
        self._say(f"reading: {documents} documents, {tokens} tokens", self._due())

    def data(self, ingested: Ingested) -> None:
        """The tokens are ready."""
        info = ingested.training.info
        again = ", read before" if ingested.reused else ""
        self._say(f"data: {info.num_documents} documents, {info.num_tokens} tokens{again}", now=True)
        self._task = self._live.add_task("training", total=self._num_steps, figures="")

    def record(self, record: dict[str, Any]) -> None:
        """A step was made."""
        if record["held_out_loss"] is not None:
            self._held_out = f", held out {record['held_out_loss']:.3f}"
        figures = f"loss {record['loss']:.3f}{self._held_out}, {record['tokens_per_s']:.0f} tokens/s"
        if self._task is not None:
            self._live.update(self._task, completed=record["step"], figures=figures)
        last = record["step"] == self._num_steps
        self._say(f"step {record['step']}/{self._num_steps}: {figures}", self._due() or last, lasting=False)

    def notice(self, text: str) -> None:
        """The workers have no room yet, or GPUs are not used."""
        self._say(text, now=True)

    def stopped(self, newest: str) -> None:
        """Ctrl-C has ended the run."""
        self._say(f"Stopped; {newest}. The same command goes on.", now=True)

    def _due(self) -> bool:
        return time.monotonic() - self._said_s >= LINE_EVERY_S

    def _say(self, text: str, now: bool, lasting: bool = True) -> None:
        if now and (lasting or not self._console.is_terminal):
            self._said_s = time.monotonic()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def train_in_foreground(spec: TrainingSpec, address: str | None) -> None:
    """Trains to the last step; Ctrl-C ends it, and the same command goes on from the newest checkpoint.

    Raises:
        ValueError: The file or the data cannot be used; says what to do.
        RuntimeError: It did not reach its end.
    """
    console = Console(stderr=True)
    with signals_are_ctrl_c(), closing(open_session(address)), TrainingDisplay(console, spec.schedule.steps) as display:
        try:
            watch = Watch(display.tokens, display.data, display.record, display.notice, display.notice)
            finished = run_training(spec, watch, present_room().own)
        except KeyboardInterrupt:
            display.stopped(newest_in(run_folder(spec) / CHECKPOINT_FOLDER))
            raise
    Console().print(next_words(finished), markup=False, highlight=False, soft_wrap=True)


def next_words(finished: Finished) -> str:
    """What to do with a run that has ended."""
    folder = shlex.quote(str(finished.folder))
    return (
        f"Done: {finished.checkpoint.progress.step} steps, {finished.checkpoint.directory}\n\n"
        f"Serve it:\n\n  manta export {folder} OUT\n  manta serve OUT\n\n"
        f"Look at it:\n\n  tensorboard --logdir {folder}/tensorboard"
    )


def export_run(run: Path, out: Path, step: int | None, dtype: str) -> str:
    """Writes a run's checkpoint as a Hugging Face directory; returns what to tell the user.

    Raises:
        ValueError: The run has no such checkpoint.
        OSError: It cannot be written.
    """
    from training.export import TOKENIZER_FOLDER, export, find_checkpoint

    found = find_checkpoint(run, step)
    tokenizer = run / TOKENIZER_FOLDER
    link = next((path for path in (tokenizer, *tokenizer.rglob("*")) if path.is_symlink()), None)
    if link is not None:  # Manta copies files; a link may name what is not the run's to give away
        raise ValueError(f"{link} is a link, which no run makes; replace it by the file, or remove it")
    export(found, out, dtype, tokenizer if tokenizer.is_dir() else None)
    return f"Wrote step {found.progress.step} to {out}. Serve it: manta serve {shlex.quote(str(out))}"
