"""The gateway's data plane against real sockets: streams, failover without gap or repeat, waiting, cancelling."""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import pytest

from protos.dispatch_pb2 import Header
from protos.generation_pb2 import (
    FAILED,
    LENGTH,
    GenerationFailure,
    Leaving,
    SequenceOutput,
    StepOutput,
    Submit,
    TokenLogprob,
)
from serving.generator import GenerationError
from serving.nodes import NodeGenerator
from transport.address import Address
from transport.credentials import Credentials
from transport.frames import Frame
from transport.loop import Loop
from transport.membership import Role, Snapshot
from transport.server import Session, SocketServer
from transport.table import RoutingTable
from transport.tries import MAX_DEATHS

CREDENTIALS = Credentials(b"k" * 32)
LIMIT_S = 10.0


class FakeNode:
    """An attention node that says what the test tells it to. With `num_places`, further submissions are refused."""

    def __init__(self) -> None:
        self.num_places: int | None = None
        self.submits: list[Submit] = []
        self.cancelled: list[int] = []
        self._loop = Loop()
        self._sessions: list[Session] = []
        self._server = SocketServer(self._loop, "node", CREDENTIALS, None, self._frame)
        self.address = self._server.address
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _frame(self, session: Session, frame: Frame) -> None:
        if frame.header.WhichOneof("kind") == "submit":
            self._sessions.append(session)
            self.submits.append(frame.header.submit)
            if self.num_places is not None and len(self.submits) > self.num_places:
                self.refuse(len(self.submits) - 1)
        else:
            self.cancelled += frame.header.cancel.sequence_ids

    def say(self, number: int, *token_ids: int, **more: object) -> None:
        """Sends tokens of the `number`th submission: one as a plain column, several (or `more`) as a message."""
        sequence_id = self.submits[number].sequence_id
        if len(token_ids) == 1 and not more:
            step = StepOutput(sequence_ids=[sequence_id], token_ids=token_ids)
        else:
            step = StepOutput(outputs=[SequenceOutput(sequence_id=sequence_id, token_ids=token_ids, **more)])
        self.say_step(number, step)

    def say_step(self, number: int, step: StepOutput) -> None:
        """Sends a step to whoever made the `number`th submission."""
        self._loop.post(lambda: self._sessions[number].send(Header(step_output=step)))

    def refuse(self, number: int) -> None:
        """Answers the `number`th submission that the queue is full."""
        self.say(number, finish_reason=FAILED, failure=GenerationFailure(code="queue_full", message="4 wait"))

    def say_leaving(self) -> None:
        for session in self._sessions:
            self._loop.post(lambda session=session: session.send(Header(leaving=Leaving())))

    def leave(self) -> None:
        """Ends on purpose."""
        self.say_leaving()
        self.die()

    def die(self) -> None:
        if self._thread.is_alive():
            self._loop.post(self._server.close)
            self._loop.post(self._loop.stop)
            self._thread.join(LIMIT_S)


@dataclass
class FakeMembership:
    """The control plane, by hand."""

    on_table: Callable[[RoutingTable], None] = field(default=lambda table: None)
    on_stop: Callable[[], None] = field(default=lambda: None)
    version: int = 0

    def credentials(self) -> Credentials:
        return CREDENTIALS

    def tcp_host(self) -> str | None:
        return None

    def watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None] = lambda: None) -> None:
        self.on_table, self.on_stop = on_table, on_stop

    def announce(
        self,
        role: Role,
        address: Address | None,
        snapshot: Callable[[], Snapshot],
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        raise AssertionError("a generator does not announce itself")

    def wait_announced(self, timeout_s: float) -> bool:
        raise AssertionError("a generator does not announce itself")

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        return [("node", {"running": 1}), ("router", {"rows": 2}), ("gateway", {"prompt_tokens": 3})]

    def leave(self) -> None:
        return

    def publish(self, *nodes: FakeNode) -> None:
        self.version += 1
        self.on_table(RoutingTable(self.version, nodes=tuple(node.address for node in nodes)))


@pytest.fixture
def many() -> Iterator[list[FakeNode]]:
    """One more than a request may kill."""
    made = [FakeNode() for _ in range(MAX_DEATHS + 1)]
    yield made
    for node in made:
        node.die()


@pytest.fixture
def nodes(many: list[FakeNode]) -> list[FakeNode]:
    return many[:2]


@asynccontextmanager
async def generator_of(membership: FakeMembership, recovery_timeout_s: float = LIMIT_S) -> AsyncIterator[NodeGenerator]:
    generator = NodeGenerator(membership, recovery_timeout_s)
    try:
        yield generator
    finally:
        generator.close()


async def until(check: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


class Reader:
    """Reads one sequence in a task of its own."""

    def __init__(self, generator: NodeGenerator, *prompt: int) -> None:
        self.tokens: list[int] = []
        self.outputs: list[SequenceOutput] = []
        self._outputs = generator.generate(Submit(prompt_ids=prompt))
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for output in self._outputs:
                self.outputs.append(output)
                self.tokens += output.token_ids
        finally:
            await self._outputs.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    async def end(self) -> list[int]:
        await asyncio.wait_for(self.task, LIMIT_S)
        return self.tokens


def in_a_loop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Runs an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: object, **fixtures: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), 3 * LIMIT_S))

    return run


@contextmanager
def fails_with(code: str) -> Iterator[None]:
    with pytest.raises(GenerationError) as caught:
        yield
    assert caught.value.code == code


@in_a_loop
async def test_tokens_and_messages_arrive_in_order(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        assert not generator.ready
        membership.publish(nodes[0])
        reader = Reader(generator, 1, 2)
        await until(lambda: nodes[0].submits)
        assert generator.ready
        assert list(nodes[0].submits[0].prompt_ids) == [1, 2]
        for token_id in (5, 6, 7):
            nodes[0].say(0, token_id)
        nodes[0].say(0, 8, 9, finish_reason=LENGTH)
        assert await reader.end() == [5, 6, 7, 8, 9]
        assert generator.num_streams == 0
        assert nodes[0].cancelled == []


@in_a_loop
async def test_the_node_with_fewer_streams_is_chosen(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(*nodes)
        readers = []
        for number in range(4):
            readers.append(Reader(generator, 3))
            await until(lambda wanted=number + 1: sum(len(node.submits) for node in nodes) == wanted)
        assert [len(node.submits) for node in nodes] == [2, 2]
        for reader in readers:
            reader.task.cancel()


@in_a_loop
async def test_a_stream_goes_on_at_another_node_without_gap_or_repeat(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        scored = [TokenLogprob(token_id=1)]
        nodes[0].say(0, 5, 6, prompt_logprobs=scored)
        await until(lambda: reader.tokens == [5, 6])
        membership.publish(*nodes)
        nodes[0].die()
        await until(lambda: nodes[1].submits)
        resumed = nodes[1].submits[0]
        assert (list(resumed.prompt_ids), list(resumed.output_ids)) == ([1], [5, 6])
        assert (resumed.resumed, nodes[0].submits[0].resumed) == (True, False)
        nodes[1].say(0, 7, prompt_logprobs=scored)
        nodes[1].say(0, 8, finish_reason=LENGTH)
        assert await reader.end() == [5, 6, 7, 8]
        assert sum(len(output.prompt_logprobs) for output in reader.outputs) == 1


@in_a_loop
async def test_a_step_that_does_not_add_up_is_none(nodes: list[FakeNode]) -> None:
    """Nothing of it is believed: the connection ends, and its streams go on at another node."""
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        nodes[0].say(0, 5)
        await until(lambda: reader.tokens == [5])
        membership.publish(*nodes)
        await until(lambda: generator.num_nodes == 2)
        nodes[0].say_step(0, StepOutput(sequence_ids=[nodes[0].submits[0].sequence_id], token_ids=[6, 7]))
        await until(lambda: nodes[1].submits)
        assert list(nodes[1].submits[0].output_ids) == [5]
        nodes[1].say(0, 8, finish_reason=LENGTH)
        assert await reader.end() == [5, 8]


@in_a_loop
async def test_a_node_that_leaves_the_table_gives_its_streams_up(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        membership.publish(nodes[1])
        await until(lambda: nodes[1].submits)
        assert nodes[1].submits[0].resumed, "though it may have waited there, without a token"
        nodes[1].say(0, 4, 5, finish_reason=LENGTH)
        assert await reader.end() == [4, 5]


async def submitted(nodes: list[FakeNode], seen: set[FakeNode]) -> FakeNode:
    """Waits until one that was not seen before has the sequence."""
    await until(lambda: any(node.submits for node in nodes if node not in seen))
    return next(node for node in nodes if node.submits and node not in seen)


@in_a_loop
@pytest.mark.parametrize("how", ["says so", "leaves the table"])
async def test_nodes_that_leave_on_purpose_are_not_held_against_a_request(many: list[FakeNode], how: str) -> None:
    """As many of them as it takes, without a token in between: five nodes become one, and it waited at each."""
    membership, seen = FakeMembership(), set[FakeNode]()
    async with generator_of(membership) as generator:
        membership.publish(*many)
        await until(lambda: all(node.link.up for node in generator._nodes.values()))
        reader = Reader(generator, 1)
        for _ in range(MAX_DEATHS):
            node = await submitted(many, seen)
            seen.add(node)
            if how == "says so":
                node.leave()
            else:
                membership.publish(*(one for one in many if one not in seen))
        last = await submitted(many, seen)
        last.say(0, 4, 5, finish_reason=LENGTH)
        assert await reader.end() == [4, 5]


@in_a_loop
async def test_a_node_that_says_that_it_leaves_gets_no_more(nodes: list[FakeNode]) -> None:
    """Though it is still connected."""
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        nodes[0].say_leaving()
        await until(lambda: not generator.ready)
        membership.publish(*nodes[:2])
        await until(lambda: nodes[1].submits)
        assert len(nodes[0].submits) == 1
        assert generator.num_nodes == 1, "of the two"
        nodes[1].say(0, 4, finish_reason=LENGTH)
        assert await reader.end() == [4]


@in_a_loop
async def test_a_request_that_kills_nodes_is_ended(many: list[FakeNode]) -> None:
    membership, seen = FakeMembership(), set[FakeNode]()
    async with generator_of(membership) as generator:
        membership.publish(*many)
        await until(lambda: all(node.link.up for node in generator._nodes.values()))
        reader = Reader(generator, 1)
        for _ in range(MAX_DEATHS):
            node = await submitted(many, seen)
            seen.add(node)
            node.die()
        with fails_with("internal"):
            await reader.end()
        assert sum(len(node.submits) for node in many) == MAX_DEATHS


@in_a_loop
async def test_what_each_node_told_of_missing_experts_arrives(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        nodes[0].say(0, 5)
        nodes[0].say(0, 6, missing_experts=[3])
        await until(lambda: reader.tokens == [5, 6])
        membership.publish(nodes[1])
        await until(lambda: nodes[1].submits)
        nodes[1].say(0, 7, missing_experts=[0])
        nodes[1].say(0, 8, finish_reason=LENGTH, missing_experts=[0, 1])
        assert await reader.end() == [5, 6, 7, 8]
        assert {expert for output in reader.outputs for expert in output.missing_experts} == {0, 1, 3}


@in_a_loop
async def test_a_request_waits_for_a_node(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        reader = Reader(generator, 1)
        await asyncio.sleep(0.05)
        membership.publish(nodes[0])
        await until(lambda: nodes[0].submits)
        nodes[0].say(0, 4, finish_reason=LENGTH)
        assert await reader.end() == [4]


@in_a_loop
async def test_no_node_comes() -> None:
    async with generator_of(FakeMembership(), recovery_timeout_s=0.05) as generator:
        with fails_with("expert_unavailable"):
            await Reader(generator, 1).end()


@in_a_loop
async def test_what_the_node_refuses(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        failure = GenerationFailure(code="context_length", message="too long")
        nodes[0].say(0, finish_reason=FAILED, failure=failure)
        with fails_with("context_length"):
            await reader.end()


@in_a_loop
async def test_a_full_node_does_not_refuse_while_another_has_room(nodes: list[FakeNode]) -> None:
    """Two gateways that do not see each other's streams, and two nodes with one place each."""
    for node in nodes:
        node.num_places = 1
    one, other = FakeMembership(), FakeMembership()
    async with generator_of(one) as first, generator_of(other) as second:
        for membership in (one, other):
            membership.publish(*nodes)
        await until(lambda: all_connected(first, 2) and all_connected(second, 2))
        readers = [Reader(first, 1), Reader(first, 2)]
        await until(lambda: all(node.submits for node in nodes))
        refused = Reader(second, 3)
        with fails_with("queue_full"):
            await refused.end()
        assert [[list(submit.prompt_ids) for submit in node.submits[1:]] for node in nodes] == [[[3]], [[3]]]
        assert second.num_streams == 0
        nodes[1].num_places = 3
        late = Reader(second, 4)
        await until(lambda: [4] in [list(submit.prompt_ids) for submit in nodes[1].submits])
        assert not nodes[1].submits[-1].resumed
        nodes[1].say(2, 7, finish_reason=LENGTH)
        assert await late.end() == [7]
        for reader in readers:
            reader.task.cancel()


@in_a_loop
async def test_a_node_that_was_full_takes_what_was_at_a_node_that_is_lost(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        membership.publish(*nodes)
        await until(lambda: all_connected(generator, 2))
        nodes[0].refuse(0)
        await until(lambda: nodes[1].submits)
        nodes[1].die()
        await until(lambda: len(nodes[0].submits) == 2)
        assert nodes[0].submits[1].resumed
        nodes[0].say(1, 9, finish_reason=LENGTH)
        assert await reader.end() == [9]


@in_a_loop
async def test_gateways_do_not_all_ask_the_same_node_first(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(*nodes)
        await until(lambda: all_connected(generator, 2))
        for number in range(64):  # each alone; of equals, all would go to one node with probability 2 ** -63
            reader = Reader(generator, 1)
            await until(lambda wanted=number + 1: sum(len(node.submits) for node in nodes) == wanted)
            reader.task.cancel()
            await until(lambda: generator.num_streams == 0)
        assert all(node.submits for node in nodes)


def all_connected(generator: NodeGenerator, num: int) -> bool:
    return sum(node.link.up for node in generator._nodes.values()) == num  # pyright: ignore[reportPrivateUsage]


@in_a_loop
async def test_leaving_a_stream_cancels_its_sequence(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        reader.task.cancel()
        await until(lambda: nodes[0].cancelled == [nodes[0].submits[0].sequence_id])
        assert generator.num_streams == 0


@in_a_loop
async def test_stopping_the_service_ends_streams_and_requests_at_once(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    async with generator_of(membership) as generator:
        membership.publish(nodes[0])
        reader = Reader(generator, 1)
        await until(lambda: nodes[0].submits)
        membership.on_stop()
        for one in (reader, Reader(generator, 2)):
            with fails_with("expert_unavailable"):
                await one.end()
        membership.publish(*nodes)
        await asyncio.sleep(0.05)
        assert not generator.ready


@in_a_loop
async def test_closing_ends_streams(nodes: list[FakeNode]) -> None:
    membership = FakeMembership()
    generator = NodeGenerator(membership, LIMIT_S)
    membership.publish(nodes[0])
    reader = Reader(generator, 1)
    await until(lambda: nodes[0].submits)
    generator.close()
    with fails_with("expert_unavailable"):
        await reader.end()


@in_a_loop
async def test_the_fleets_metrics_leave_routers_out() -> None:
    async with generator_of(FakeMembership()) as generator:
        assert await generator.fleet_metrics() == [{"running": 1}, {"prompt_tokens": 3}]
