"""Ranks for tests: processes of this machine that talk over gloo. They are started once, as torch takes seconds to."""

import multiprocessing as mp
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
MOST = 4


class Ranks:
    """Up to four processes that run what they are told to.

    Args:
        folder: Where they meet, and leave their results.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, world: int, body: Callable[..., Any], *args: Any, backend: str | None = None) -> list[Any]:
        """Returns what `body(rank, *args)` returned on each rank of a new process group; all must be plain data.

        Args:
            backend: The group's; None: gloo, and no group for a single rank.
        """
        self._start(world)
        meeting = self._folder / f"meeting-{os.urandom(4).hex()}"
        for rank, pipe in enumerate(self._pipes[:world]):
            pipe.send((rank, world, str(meeting), backend, body, args))
        outcomes: list[Any] = []
        failures: list[str] = []
        for rank, pipe in enumerate(self._pipes[:world]):
            if not pipe.poll(TIMEOUT_S):
                failures.append(f"rank {rank} of {world}: no answer within {TIMEOUT_S} s")
                continue
            outcome, failure = pipe.recv()
            outcomes.append(outcome)
            failures += [f"rank {rank} of {world}:\n{failure}"] if failure else []
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        import torch

        return [torch.load(path, weights_only=False) for path in outcomes]  # noqa: TID251 - our own

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
        self._processes, self._pipes = [], []

    def _start(self, world: int) -> None:
        context = mp.get_context("spawn")
        while len(self._processes) < world:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(here)


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        rank, world, meeting, backend, body, args = pipe.recv()
        try:
            outcome = Path(f"{meeting}-{rank}.pt")
            torch.save(_run(rank, world, meeting, backend, body, args), outcome)
            pipe.send((outcome, ""))
        except BaseException:
            pipe.send((None, traceback.format_exc()))


def _run(
    rank: int, world: int, meeting: str, backend: str | None, body: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    import torch.distributed as dist

    if world == 1 and backend is None:
        return body(rank, *args)
    dist.init_process_group(
        backend or "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    try:
        return body(rank, *args)
    finally:
        dist.barrier()
        dist.destroy_process_group()
