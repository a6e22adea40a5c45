"""What the gateway asks of whatever makes tokens: attention nodes in production, `serving.fake` in tests."""

from collections.abc import AsyncIterator, Mapping
from typing import Literal, Protocol, get_args

from protos.generation_pb2 import SequenceOutput, Submit
from serving.metrics import MetricsSnapshot

GenerationCode = Literal["queue_full", "context_length", "expert_unavailable", "invalid_request", "internal"]
CODE_OF_NAME: Mapping[str, GenerationCode] = {name: name for name in get_args(GenerationCode)}


class GenerationError(Exception):
    """A sequence ended without being finished; `code` says whose fault it is and whether trying again helps."""

    code: GenerationCode
    message: str

    def __init__(self, code: str, message: str) -> None:
        """An unknown `code` (a newer node's, say) becomes `internal`; the message keeps its name."""
        known = CODE_OF_NAME.get(code)
        self.code = known or "internal"
        self.message = message if known else f"{code}: {message}"
        super().__init__(self.code, self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Generator(Protocol):
    """Makes token ids for submitted sequences."""

    @property
    def num_nodes(self) -> int:
        """How many attention nodes take sequences now."""
        ...

    def generate(self, submit: Submit) -> AsyncIterator[SequenceOutput]:
        """Yields what a sequence has produced since the last item; several tokens may come at once.

        The last item has a `finish_reason` other than UNFINISHED. Raises GenerationError (an item whose reason
        is FAILED means the same; `queue_full` comes before all others). Closing the iterator early (`aclose`, or
        cancelling the task that waits for the next item) cancels the sequence at once.
        `submit.sequence_id` is 0: the generator chooses its own.
        """
        ...

    async def fleet_metrics(self) -> list[MetricsSnapshot]:
        """Snapshots of the other gateways and of every attention node; this gateway adds its own."""
        ...
