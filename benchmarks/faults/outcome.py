"""How these benchmarks end: what was found is shown, or what kept them from finding anything is said in words."""

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

from benchmarks.client import ServerError
from benchmarks.faults.service import ServiceError
from cluster.spec import SpecError
from manta.outcome import signals_are_ctrl_c
from model.errors import ModelError
from spec.outcome import BAD_INPUT, INTERRUPTED

Found = TypeVar("Found")


def exit_status(measure: Callable[[], Found], show: Callable[[Found], int], progress: Console) -> int:
    """Measures, and shows what was found; returns the exit status.

    Args:
        measure: What takes long; Ctrl-C and SIGTERM end it.
        show: Prints what was found, and returns the exit status that it deserves.
        progress: Where errors are printed.
    """
    try:
        with signals_are_ctrl_c():
            found = measure()
    except (ModelError, SpecError, ServiceError, ServerError) as error:
        progress.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        progress.print("Interrupted.")
        return INTERRUPTED
    return show(found)
