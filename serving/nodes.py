"""The gateway's data-plane side: streams of the attention nodes' outputs, inside asyncio's own loop.

A stream whose node is lost goes on at another one: it is submitted again with the tokens emitted so far. One that a
node refuses, because its queue is full (of what other gateways sent, say), is offered to the others.
"""

import asyncio
import random
import time
from array import array
from collections.abc import AsyncIterator, Container

from protos.dispatch_pb2 import Header
from protos.generation_pb2 import FAILED, Cancel, SequenceOutput, StepOutput, Submit, TokenLogprob
from serving.generator import GenerationError
from serving.metrics import MetricsSnapshot
from transport.address import Address
from transport.credentials import Credentials
from transport.errors import FrameError
from transport.frames import Frame
from transport.link import ANSWER_TIMEOUT_S, Link
from transport.loop import Loop
from transport.membership import Membership
from transport.table import Newest, RoutingTable
from transport.tries import NO_TRIES


class _NodeLost(Exception):
    """The stream's node went away before the stream ended.

    Args:
        left: Whether on purpose.
    """

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left


class _Stream:
    """One sequence's outputs: what has come and has not been taken, coalesced into one."""

    __slots__ = ("_lost", "_ready", "_waiting")

    def __init__(self) -> None:
        self._waiting: SequenceOutput | None = None
        self._lost: _NodeLost | None = None
        self._ready: asyncio.Future[None] | None = None

    def token(self, token_id: int) -> None:
        if self._waiting is None:
            self._waiting = SequenceOutput()
        self._waiting.token_ids.append(token_id)
        self._wake()

    def output(self, output: SequenceOutput) -> None:
        if self._waiting is None:
            self._waiting = output
        else:
            self._waiting.MergeFrom(output)
        self._wake()

    def lose(self, left: bool) -> None:
        self._lost = _NodeLost(left)
        self._wake()

    async def next(self) -> SequenceOutput:
        """Returns what has come since the last call, waiting for it if need be.

        Raises:
            _NodeLost: Nothing is left, and nothing more will come.
        """
        while self._waiting is None:
            if self._lost is not None:
                raise self._lost
            self._ready = asyncio.get_running_loop().create_future()
            await self._ready
        output, self._waiting = self._waiting, None
        return output

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)


class Progress:
    """How far a sequence has come, over all the nodes that have served it."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._emitted = array("I")  # a ninth of what a list of them takes
        self._prompt_logprobs: list[TokenLogprob] = []  # of a long prompt they come in several messages
        self._started = False
        self._tries = NO_TRIES  # without a token in between
        self._resumed = False

    def request(self) -> Submit:
        """Returns what to ask of the next node: what is left to do."""
        request = Submit()
        request.CopyFrom(self._submit)
        request.output_ids.extend(self._emitted)
        request.resumed = self._resumed
        self._prompt_logprobs.clear()
        if self._started:
            request.sampling.prompt_logprobs = False
        return request

    def take(self, output: SequenceOutput) -> bool:
        """Notes an output; False if there is nothing in it to hand on yet."""
        self._prompt_logprobs.extend(output.prompt_logprobs)
        output.ClearField("prompt_logprobs")
        if not output.token_ids and not output.finish_reason:
            return False
        if not self._started:
            self._started = True
            output.prompt_logprobs.extend(self._prompt_logprobs)
            self._prompt_logprobs.clear()
        self._emitted.extend(output.token_ids)
        self._tries = NO_TRIES
        return True

    def node_lost(self, node: "_Node", left: bool) -> None:
        """Notes that a node went away, or `left` on purpose.

        Raises:
            GenerationError: Several died, one after the other, without a token: it may be this very sequence's fault.
        """
        self._resumed = True
        self._tries = self._tries.another(None if left else node, lambda other: other.usable)
        if self._tries.too_many:
            message = f"{self._tries.num} attention nodes were lost one after the other while they served this"
            raise GenerationError("internal", message)


class _Node:
    """One attention node and the streams it serves."""

    def __init__(
        self, nodes: "NodeGenerator", loop: Loop, address: Address, credentials: Credentials, answer_timeout_s: float
    ) -> None:
        self.streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._leaving = False
        self.link = Link(
            loop, address, credentials, "gateway", self._frame, nodes.changed, self._down, answer_timeout_s
        )

    @property
    def usable(self) -> bool:
        """Whether it takes sequences."""
        return self.link.up and not self._leaving

    def open(self, submit: Submit) -> tuple[int, _Stream]:
        """Starts a sequence on this node."""
        sequence_id = submit.sequence_id = self._next_id
        self._next_id += 1
        stream = self.streams[sequence_id] = _Stream()
        self.link.send(Header(submit=submit))
        return sequence_id, stream

    def close_stream(self, sequence_id: int, finished: bool) -> None:
        """Forgets a stream; unless it has `finished`, the node is told to free it at once."""
        if self.streams.pop(sequence_id, None) is not None and not finished and self.link.up:
            self.link.send(Header(cancel=Cancel(sequence_ids=[sequence_id])))

    def close(self) -> None:
        self.link.close()
        self._leave()

    def _frame(self, frame: Frame) -> None:
        header = frame.header
        kind = header.WhichOneof("kind")
        if kind == "step_output":
            self._deliver(header.step_output)
        elif kind == "leaving":
            self._leave()

    def _leave(self) -> None:
        self._leaving = True
        self._down("the node leaves")

    def _deliver(self, step: StepOutput) -> None:
        if len(step.sequence_ids) != len(step.token_ids):  # the connection ends: its streams go on elsewhere
            raise FrameError(f"a node sent {len(step.token_ids)} tokens for {len(step.sequence_ids)} sequences")
        streams = self.streams
        for sequence_id, token_id in zip(step.sequence_ids, step.token_ids, strict=True):
            if (stream := streams.get(sequence_id)) is not None:
                stream.token(token_id)
        for output in step.outputs:
            if (stream := streams.get(output.sequence_id)) is not None:
                stream.output(output)

    def _down(self, reason: str) -> None:
        del reason
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.lose(left=self._leaving)


class NodeGenerator:
    """The `Generator` that the API runs on.

    Args:
        membership: The control plane.
        recovery_timeout_s: How long a request waits while no node is connected (`limits.recovery_timeout_s`).
        answer_timeout_s: How long a node may be silent though it is asked (`limits.answer_timeout_s`).
    """

    def __init__(
        self, membership: Membership, recovery_timeout_s: float, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._membership = membership
        self._credentials = membership.credentials()
        self._recovery_timeout_s = recovery_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._loop = Loop()
        self._nodes: dict[Address, _Node] = {}
        self._tables = Newest()
        self._asyncio = asyncio.get_running_loop()
        self._ended = False
        self._change = asyncio.Event()
        # The loop's own descriptor is readable whenever it has something to do: asyncio turns it then.
        self._asyncio.add_reader(self._loop.fileno(), self._loop.run_once, 0.0)
        membership.watch(lambda table: self._loop.post(lambda: self._update(table)), self._stop_soon)

    @property
    def ready(self) -> bool:
        """Whether a node is connected."""
        return any(node.usable for node in self._nodes.values())

    @property
    def num_streams(self) -> int:
        """Sequences under way."""
        return sum(len(node.streams) for node in self._nodes.values())

    @property
    def num_nodes(self) -> int:
        """How many nodes take sequences now."""
        return sum(node.usable for node in self._nodes.values())

    async def generate(self, submit: Submit) -> AsyncIterator[SequenceOutput]:
        """Yields a sequence's outputs; see `serving.generator.Generator`. `queue_full`: every connected node is."""
        progress, full = Progress(submit), set[_Node]()
        while True:
            node = await self._choose(full)
            sequence_id, stream = node.open(progress.request())
            finished = False
            try:
                while not finished:
                    output = await stream.next()
                    finished = bool(output.finish_reason)
                    if output.finish_reason == FAILED:
                        raise GenerationError(output.failure.code, output.failure.message)
                    if progress.take(output):
                        yield output
                return
            except _NodeLost as lost:
                progress.node_lost(node, lost.left)
                full.clear()  # a full queue does not refuse what was at a node that was lost
            except GenerationError as error:
                full.add(node)
                if error.code != "queue_full" or not self._usable(full):
                    raise
            finally:
                node.close_stream(sequence_id, finished)

    async def fleet_metrics(self) -> list[MetricsSnapshot]:
        """Returns the last snapshots of the other gateways and of every node."""
        return [snapshot for role, snapshot in await self._membership.snapshots() if role != "router"]  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        """Ends every connection; streams under way fail."""
        self._end()
        self._asyncio.remove_reader(self._loop.fileno())
        self._loop.close()

    def changed(self) -> None:
        """A node has connected: requests that wait for one look again."""
        self._change.set()

    def _usable(self, full: Container[_Node]) -> list[_Node]:
        """Returns the nodes that take sequences but those that are `full`."""
        return [node for node in self._nodes.values() if node.usable and node not in full]

    async def _choose(self, full: Container[_Node]) -> _Node:
        """Returns the connected node with the fewest streams that is not `full`, waiting for one if need be."""
        deadline_s = time.monotonic() + self._recovery_timeout_s
        while True:
            if self._ended:
                raise GenerationError("expert_unavailable", "the service is being stopped")
            if nodes := self._usable(full):
                # Gateways do not see each other's streams: of equals they would all ask the same one first.
                return min(nodes, key=lambda node: (len(node.streams), random.random()))
            self._change.clear()
            try:
                await asyncio.wait_for(self._change.wait(), deadline_s - time.monotonic())
            except TimeoutError:
                message = f"no attention node within {self._recovery_timeout_s:g} s (limits.recovery_timeout_s)"
                raise GenerationError("expert_unavailable", message) from None

    def _stop_soon(self) -> None:
        """The whole service is being stopped: nobody waits for nodes that will not come back."""
        self._loop.post(self._end)

    def _end(self) -> None:
        self._ended = True
        while self._nodes:
            self._nodes.popitem()[1].close()
        self._change.set()

    def _update(self, table: RoutingTable) -> None:
        if self._ended or not self._tables.is_newer(table):
            return
        for address in set(table.nodes) - self._nodes.keys():
            self._nodes[address] = _Node(self, self._loop, address, self._credentials, self._answer_timeout_s)
        for address in self._nodes.keys() - set(table.nodes):
            self._nodes.pop(address).close()
