"""A node, a router and experts on real sockets, each in a thread of its own, and the gateways that a test plays."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attention.dense import DenseModel
from attention.node import NodeServer
from attention.sizing import NodeSettings, make_cache
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights
from experts.service import ExpertService
from experts.shard import load_shard
from model.config import MixtralConfig, read_config
from protos.dispatch_pb2 import Header
from protos.generation_pb2 import Cancel, Sampling, SequenceOutput, StepOutput, Submit
from router.levels import load_gates
from router.server import RouterServer
from transport.address import Address
from transport.credentials import Credentials
from transport.frames import Frame
from transport.link import ANSWER_TIMEOUT_S, Link
from transport.loop import Loop
from transport.socket import RequestServer
from transport.table import RoutingTable, ShardEntry

CREDENTIALS = Credentials(b"a key for the tests of nodes")
CPU = torch.device("cpu")
FP32 = torch.float32
TIMEOUT_S = 120.0  # what is waited for comes at once, unless the whole machine is held up


class Gateway:
    """A gateway's connection to a node, turned by the test itself."""

    def __init__(self, address: Address, credentials: Credentials = CREDENTIALS) -> None:
        self.loop = Loop()
        self.outputs: dict[int, SequenceOutput] = {}
        self.num_downs = self.num_leaves = 0
        self.link = Link(self.loop, address, credentials, "gateway", self._frame, lambda: None, self._down)

    def submit(
        self, sequence_id: int, prompt: list[int], output: list[int] | None = None, task: str = "", **sampling: object
    ) -> None:
        wanted = Submit(
            sequence_id=sequence_id,
            prompt_ids=prompt,
            output_ids=output or [],
            task=task,
            sampling=Sampling(**sampling),
        )
        self.connect()
        self.link.send(Header(submit=wanted))

    def cancel(self, *sequence_ids: int) -> None:
        self.link.send(Header(cancel=Cancel(sequence_ids=sequence_ids)))

    def connect(self) -> None:
        self.wait(lambda: self.link.up)

    def tokens(self, sequence_id: int) -> list[int]:
        return list(self.outputs[sequence_id].token_ids) if sequence_id in self.outputs else []

    def finish(self, *sequence_ids: int) -> list[SequenceOutput]:
        """Waits until all of them have ended."""
        self.wait(lambda: all(i in self.outputs and self.outputs[i].finish_reason for i in sequence_ids))
        return [self.outputs[i] for i in sequence_ids]

    def wait(self, holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Turns the loop until something holds."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, f"still waiting after {timeout_s} s"
            self.loop.run_once(0.01)

    def close(self) -> None:
        self.link.close()
        self.loop.close()

    def _frame(self, frame: Frame) -> None:
        self.num_leaves += frame.header.WhichOneof("kind") == "leaving"
        step: StepOutput = frame.header.step_output
        for sequence_id, token_id in zip(step.sequence_ids, step.token_ids, strict=True):
            self.outputs.setdefault(sequence_id, SequenceOutput()).token_ids.append(token_id)
        for output in step.outputs:
            self.outputs.setdefault(output.sequence_id, SequenceOutput()).MergeFrom(output)

    def _down(self, reason: str) -> None:
        del reason
        self.num_downs += 1


@dataclass
class Setup:
    """What a test has: the node, and the means to start and stop routers."""

    directory: Path
    config: MixtralConfig
    node: NodeServer
    shards: tuple[ShardEntry, ...]
    experts: list[ExitStack]
    tcp_host: str | None = None
    version: int = 0
    gateways: list[Gateway] = field(default_factory=list)

    def gateway(self) -> Gateway:
        """A new gateway, connected."""
        gateway = Gateway(self.node.address)
        self.gateways.append(gateway)
        gateway.connect()
        return gateway

    @contextmanager
    def router(
        self, degrade: bool = False, recovery_timeout_s: float = 1.0, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Iterator[RouterServer]:
        """A router that serves until the context ends."""
        gates = load_gates(self.directory, self.config, FP32, CPU)
        router = RouterServer(gates, CREDENTIALS, self.tcp_host, recovery_timeout_s, degrade, answer_timeout_s)
        router.update(RoutingTable(version=1, shards=self.shards))
        with serving(_without_gradients(router.run), router.stop):
            assert router.wait_ready(TIMEOUT_S)
            yield router

    def kill_expert(self, shard: int) -> None:
        """Ends one of the two expert shards for good."""
        self.experts[shard].close()

    def announce(self, *routers: RouterServer) -> None:
        """Tells the node which routers there are."""
        self.version += 1
        self.node.update(RoutingTable(self.version, self.shards, tuple(router.address for router in routers)))

    def wait_busy(self) -> None:
        """Waits until the node has begun to compute."""
        self._wait(lambda: self.node.snapshot()["steps_total"] != 0)

    def wait_idle(self) -> None:
        """Waits until the node holds no sequence and no cache."""
        held = ("running", "waiting", "cache_used_tokens")
        self._wait(lambda: not any(self.node.snapshot()[name] for name in held))

    def _wait(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < deadline_s, f"the node stays at {self.node.snapshot()}"
            time.sleep(0.005)


@contextmanager
def start_node(
    directory: Path,
    settings: NodeSettings,
    tcp_host: str | None = None,
    recovery_timeout_s: float = 0.5,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Iterator[Setup]:
    """A node and two expert shards; no router yet. `tcp_host`: where all of them listen beside their Unix sockets."""
    config = read_config(directory)
    with ExitStack() as stack:
        half = config.num_experts // 2
        experts = [stack.enter_context(ExitStack()) for _ in range(2)]
        shards = tuple(
            ShardEntry(ids, 0, 1, (expert.enter_context(_expert(directory, config, ids, tcp_host)),))
            for expert, ids in zip(experts, (tuple(range(half)), tuple(range(half, config.num_experts))), strict=True)
        )
        weights = read_attention_weights(CheckpointReader(directory), config, FP32)
        model, cache = DenseModel(config, weights, CPU), make_cache(settings, config, FP32, CPU)
        node = NodeServer(
            model, cache, settings, CREDENTIALS, tcp_host, recovery_timeout_s, TIMEOUT_S, answer_timeout_s
        )
        stack.enter_context(serving(node.run, node.stop))
        setup = Setup(directory, config, node, shards, experts, tcp_host)
        yield setup
        for gateway in setup.gateways:
            gateway.close()


@contextmanager
def _expert(
    directory: Path, config: MixtralConfig, expert_ids: tuple[int, ...], tcp_host: str | None
) -> Iterator[Address]:
    loop = Loop()
    service = ExpertService(load_shard(directory, config, expert_ids, 0, 1, FP32, CPU), CPU)
    server = RequestServer(loop, "expert", CREDENTIALS, tcp_host, service.serve)
    with serving(_without_gradients(loop.run_forever), loop.stop):
        yield server.address
    server.close()


@contextmanager
def serving(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[threading.Thread]:
    """Runs something in a thread until the context ends."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "a server did not stop"


def _without_gradients(run: Callable[[], None]) -> Callable[[], None]:
    def inside() -> None:
        with torch.inference_mode():
            run()

    return inside
