"""Ctrl-C while Ray Train runs: it ends a run as it ends everything else."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def ctrl_c_interrupts() -> Generator[None]:
    """Inside, what Ray Train does about Ctrl-C, which is to end the run and then this process, ends the run alone.

    Raises:
        KeyboardInterrupt: Ctrl-C has ended the run.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere Ray Train leaves signals alone
            signal.signal(signal.SIGINT, before)
