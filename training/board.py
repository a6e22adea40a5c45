"""A run's scalars for TensorBoard, written by whoever adds them.

tensorboardX's `SummaryWriter` hands them to a thread; where the storage is full that thread ends, and whoever adds more
waits for ever. Its `EventsWriter`, which that thread uses, raises.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

EVENTS: Any = event_pb2  # what protobuf makes has no types here
SUMMARIES: Any = summary_pb2


class Board:
    """An event file.

    Args:
        folder: Its folder, made if need be; TensorBoard shows all event files of it as one run.
        steps_made: Where the run goes on: what earlier files have of later steps is hidden.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, folder: Path, steps_made: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        started = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        self._write(EVENTS.Event(step=steps_made + 1, session_log=started))

    def add(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Writes the scalars of one step.

        Raises:
            OSError: The file cannot be written.
        """
        values = [SUMMARIES.Summary.Value(tag=name, simple_value=value) for name, value in scalars]
        self._write(EVENTS.Event(step=step, summary=SUMMARIES.Summary(value=values)))

    def close(self) -> None:
        """Closes the file; `add` has left nothing to be written."""
        self._events.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()
