"""The expert actor's data-plane side: answers routers in a thread of its own, pinned to a core if asked."""

import os
import time
from collections.abc import Mapping, Sequence

import torch

from experts.service import ExpertService
from experts.shard import ExpertShard
from transport.address import Address
from transport.base import Request
from transport.busy import BusyClock
from transport.credentials import Credentials
from transport.loop import Loop
from transport.pulse import Pulse
from transport.socket import RequestServer
from transport.worker import DataPlaneThread

STOP_TIMEOUT_S = 1.0


class ExpertServer:
    """Serves routers.

    Args:
        tcp_host: The interface for routers on other hosts; None: this host only.
        core: The processor core that computes; None: any.
    """

    def __init__(
        self, shard: ExpertShard, device: torch.device, credentials: Credentials, tcp_host: str | None, core: int | None
    ) -> None:
        self._loop = Loop()
        self._service = ExpertService(shard, device, self._note_progress)
        self._server = RequestServer(self._loop, "expert", credentials, tcp_host, self._serve)
        self._core = core
        self._busy = BusyClock()
        self._pulse = Pulse(self._loop, self._busy)
        self._started_s = time.monotonic()
        self._queue = 0
        self._thread = DataPlaneThread("expert", self._run)

    @property
    def address(self) -> Address:
        return self._server.address

    @property
    def alive(self) -> bool:
        return self._thread.alive

    def check(self) -> None:
        """Does nothing while it serves.

        Raises:
            RuntimeError: It has ended; says why.
        """
        self._thread.check()

    def lives(self) -> bool:
        """Returns whether the thread that serves does not hang; callable from any other thread, may take a second."""
        return self._pulse.beats()

    @property
    def has_routers(self) -> bool:
        """Whether a router is connected; readable from any thread."""
        return self._server.num_callers > 0

    def start(self) -> None:
        """Starts serving."""
        self._thread.start()

    def stop(self) -> None:
        """Ends serving and waits a moment for it; callable from any other thread."""
        self._loop.stop()
        self._thread.join(STOP_TIMEOUT_S)

    def snapshot(self) -> Mapping[str, object]:
        """Returns figures for status; callable from any thread.

        `rows_total` and `busy_s` (processor time) since the start, `queue`: the rows at work now, `utilization`: the
        share of about the last second that it computed.
        """
        return {
            "rows_total": self._service.num_rows,
            "queue": self._queue,
            "busy_s": self._busy.busy_s,
            "uptime_s": time.monotonic() - self._started_s,
            "utilization": self._busy.utilization(),
        }

    def _serve(self, requests: Sequence[Request]) -> None:
        self._queue = sum(request.rows_TD.shape[0] for request in requests)
        self._service.serve(requests)
        self._queue = 0

    def _note_progress(self) -> None:
        """A computation has got on: where it is a long one, nobody is to take this actor for one that hangs."""
        if self._server.tell_progress():
            self._pulse.note_progress()

    def _run(self) -> None:
        torch.set_num_threads(1)
        self._busy.follow_thread()
        try:
            if self._core is not None:
                pin_thread(self._core)
            with torch.inference_mode():
                self._loop.run_forever()
        finally:
            self._server.close()


def pin_thread(core: int) -> None:
    """Keeps the calling thread on one core, and out of the way of whoever has just sent it rows.

    SCHED_BATCH: a woken thread does not preempt the running one, so a router sends to all experts before the first
    of them computes.
    """
    cores = sorted(os.sched_getaffinity(0))  # in a container perhaps fewer than the host has, and not from 0 on
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
