"""The thread that owns a process's data plane."""

import gc
import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


def freeze_garbage() -> None:
    """Takes everything that is loaded out of the garbage collector's sight, so that it does not pause the hot path."""
    gc.collect()
    gc.freeze()


class DataPlaneThread:
    """Runs a data plane until it ends, and keeps why it did. A daemon: it keeps no process from ending.

    Args:
        name: What the process is, such as `router`.
        run: Serves until it is told to stop.
        on_end: Called, in the same thread, once `run` has ended, for whatever reason.
    """

    def __init__(self, name: str, run: Callable[[], None], on_end: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._serve = run
        self._on_end = on_end
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"manta-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts it; everything that is to be kept should be loaded by now."""
        freeze_garbage()
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits until it has ended, at most `timeout_s`."""
        self._thread.join(timeout_s)

    def check(self) -> None:
        """Does nothing while it runs.

        Raises:
            RuntimeError: It has ended; says why.
        """
        if not self.alive:
            why = "it was stopped" if self._error is None else repr(self._error)
            raise RuntimeError(f"the {self._name}'s thread has ended: {why}")

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._error = error
            logger.exception("the %s's thread ends", self._name)
        finally:
            self._on_end()
