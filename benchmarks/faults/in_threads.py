"""A whole service in threads of this process, two of every part, with a proxy before each: no Ray, no controller."""

import asyncio
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import uvicorn

from attention.dense import DenseModel
from attention.node import NodeServer
from attention.sizing import CPU_BATCH_TOKENS, NodeSettings, make_cache
from benchmarks.faults.link_proxy import TCP_HOST, LinkProxy, Proxies
from benchmarks.faults.service import ServiceError
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights
from experts.server import ExpertServer
from experts.shard import load_shard
from model.config import MixtralConfig, read_config
from router.levels import load_gates
from router.server import RouterServer
from serving.app import build_app
from serving.nodes import NodeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from transport.address import Address
from transport.credentials import Credentials
from transport.membership import Role, Snapshot
from transport.table import RoutingTable, ShardEntry

CPU, DTYPE = torch.device("cpu"), torch.float32
NUM_REPLICAS = 2  # of every part: a fault of one link must be no reason to wait for it
MAX_SEQUENCES, MAX_QUEUED = 32, 256
RECOVERY_TIMEOUT_S, REQUEST_TIMEOUT_S, START_TIMEOUT_S = 60.0, 120.0, 120.0
KEY = b"links, between threads of one process"
HOPS: tuple[str, ...] = ("node", "router", "expert")  # by the part at whose end the link is made

Links = Mapping[str, list[LinkProxy]]


class _Membership:
    """A gateway's control plane where nothing ever changes: one table."""

    def __init__(self, credentials: Credentials, table: RoutingTable) -> None:
        self._credentials = credentials
        self._table = table

    def credentials(self) -> Credentials:
        return self._credentials

    def tcp_host(self) -> str | None:
        return None

    def watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None] = lambda: None) -> None:
        del on_stop
        on_table(self._table)

    def announce(
        self, role: Role, address: Address | None, snapshot: Callable[[], Snapshot], lives: Callable[[], bool] = bool
    ) -> None:
        del role, address, snapshot, lives

    def wait_announced(self, timeout_s: float) -> bool:
        del timeout_s
        return True

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        return []

    def leave(self) -> None:
        pass


@contextmanager
def service_in_threads(directory: Path, max_context: int, over_tcp: bool = False) -> Generator[tuple[str, Links]]:
    """Starts it; gives its URL, and the proxies before its nodes, routers and experts.

    Args:
        max_context: Positions of the longest sequence.
        over_tcp: Whether its parts speak sealed TCP with each other, as between hosts; else Unix sockets.

    Raises:
        ModelError: The model cannot be read.
        ServiceError: It does not start.
    """
    config, credentials = read_config(directory), Credentials(KEY)
    tcp_host = TCP_HOST if over_tcp else None
    with ExitStack() as stack:
        proxies = stack.enter_context(Proxies())
        experts = [stack.enter_context(_expert(directory, config, credentials, tcp_host)) for _ in range(NUM_REPLICAS)]
        links: dict[str, list[LinkProxy]] = {"expert": [proxies.before(address, over_tcp) for address in experts]}
        shards = (ShardEntry(tuple(range(config.num_experts)), 0, 1, _addresses(links["expert"])),)
        table = RoutingTable(1, shards)
        routers = [
            stack.enter_context(_router(directory, config, credentials, table, tcp_host)) for _ in range(NUM_REPLICAS)
        ]
        links["router"] = [proxies.before(address, over_tcp) for address in routers]
        table = RoutingTable(2, shards, _addresses(links["router"]))
        nodes = [
            stack.enter_context(_node(directory, config, credentials, table, max_context, tcp_host))
            for _ in range(NUM_REPLICAS)
        ]
        links["node"] = [proxies.before(address, over_tcp) for address in nodes]
        table = RoutingTable(3, shards, _addresses(links["router"]), _addresses(links["node"]))
        settings = GatewaySettings("links", max_context, config.eos_token_ids, config.vocab_size)
        url = stack.enter_context(_gateway(directory, settings, _Membership(credentials, table)))
        yield url, links


def _addresses(proxies: list[LinkProxy]) -> tuple[Address, ...]:
    return tuple(proxy.address for proxy in proxies)


@contextmanager
def _expert(
    directory: Path, config: MixtralConfig, credentials: Credentials, tcp_host: str | None
) -> Generator[Address]:
    shard = load_shard(directory, config, range(config.num_experts), 0, 1, DTYPE, CPU)
    server = ExpertServer(shard, CPU, credentials, tcp_host, None)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


@contextmanager
def _router(
    directory: Path, config: MixtralConfig, credentials: Credentials, table: RoutingTable, tcp_host: str | None
) -> Generator[Address]:
    router = RouterServer(load_gates(directory, config, DTYPE, CPU), credentials, tcp_host, RECOVERY_TIMEOUT_S)
    router.update(table)
    with _thread("router", router.run, router.stop):
        _wait("a router", router.wait_ready)
        yield router.address


@contextmanager
def _node(
    directory: Path,
    config: MixtralConfig,
    credentials: Credentials,
    table: RoutingTable,
    max_context: int,
    tcp_host: str | None,
) -> Generator[Address]:
    settings = NodeSettings(
        config.window, max_context, None, None, CPU_BATCH_TOKENS, max_sequences=MAX_SEQUENCES, max_queued=MAX_QUEUED
    )
    model = DenseModel(config, read_attention_weights(CheckpointReader(directory), config, DTYPE), CPU)
    cache = make_cache(settings, config, DTYPE, CPU)
    node = NodeServer(model, cache, settings, credentials, tcp_host, RECOVERY_TIMEOUT_S, REQUEST_TIMEOUT_S)
    node.update(table)
    with _thread("node", node.run, node.stop):
        _wait("a node", node.wait_ready)
        yield node.address


@contextmanager
def _gateway(directory: Path, settings: GatewaySettings, membership: _Membership) -> Generator[str]:
    codec, started = TextCodec.load(directory), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        generator = NodeGenerator(membership, RECOVERY_TIMEOUT_S)
        server = uvicorn.Server(
            uvicorn.Config(build_app(settings, codec, generator), log_level="error", lifespan="off")
        )
        servers.append(server)
        started.set()
        await server.serve([listener])
        generator.close()

    def stop() -> None:
        servers[0].should_exit = servers[0].force_exit = True

    with _thread("gateway", lambda: asyncio.run(serve()), stop):
        _wait("the gateway", started.wait)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _wait(what: str, wait: Callable[[float], bool]) -> None:
    if not wait(START_TIMEOUT_S):
        raise ServiceError(f"{what} did not start within {START_TIMEOUT_S:g} s")


@contextmanager
def _thread(name: str, run: Callable[[], None], stop: Callable[[], None]) -> Generator[None]:
    def inside() -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            run()

    thread = threading.Thread(target=inside, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(START_TIMEOUT_S)
