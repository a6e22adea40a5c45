"""A gateway's streams, a node, a router and experts with a faulty proxy in each link: tokens stay what they are.

What they are is computed in one process, by the local path, which is itself compared with transformers elsewhere;
without streams and without sampling, test_links_like_transformers.py compares with transformers itself.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import transport.replicas
from attention.sizing import NodeSettings
from manta.local import LocalModel
from protos.generation_pb2 import FAILED, Sampling, Submit
from serving.nodes import NodeGenerator
from tests.attention.behind_proxies import RECOVERY_S, again_and_again, service_behind_proxies
from tests.attention.node_setup import CREDENTIALS, TIMEOUT_S
from tests.local_driver import Wish, run
from tests.random_checkpoint import make_checkpoint
from tests.transport.links import Direction, LinkProxy
from transport.address import Address
from transport.credentials import Credentials
from transport.membership import Role, Snapshot
from transport.table import RoutingTable

VOCABULARY = 97
SETTINGS = NodeSettings(16, 256, None, prefill_chunk=None, max_batch_tokens=64, max_sequences=4, max_queued=8)
ANSWER_TIMEOUT_S = 1.0
WISHES = 6
MAX_ROUNDS = 50


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, hidden_size=32, ffn_size=48, vocab_size=VOCABULARY, window=16, seed=7, with_tokenizer=False)
    return path


@dataclass
class Table:
    """A gateway's membership: one table, and nothing else."""

    nodes: tuple[Address, ...]
    announced: list[Role] = field(default_factory=list[Role])

    def credentials(self) -> Credentials:
        return CREDENTIALS

    def tcp_host(self) -> str | None:
        return None

    def watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None] = lambda: None) -> None:
        on_table(RoutingTable(version=1, nodes=self.nodes))

    def announce(
        self,
        role: Role,
        address: Address | None,
        snapshot: Callable[[], Snapshot],
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        self.announced.append(role)

    def wait_announced(self, timeout_s: float) -> bool:
        return True

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        return []

    def leave(self) -> None: ...


def make_wishes(seed: int) -> list[Wish]:
    rng = random.Random(seed)
    return [
        Wish(
            [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60))],
            Sampling(max_tokens=rng.randrange(10, 40), ignore_eos=True, temperature=index % 2, seed=seed + index),
        )
        for index in range(WISHES)
    ]


async def tokens_of(generator: NodeGenerator, wish: Wish) -> list[int]:
    tokens: list[int] = []
    async for output in generator.generate(Submit(prompt_ids=wish.prompt, sampling=wish.sampling)):
        assert output.finish_reason != FAILED, output.failure
        tokens.extend(output.token_ids)
    return tokens


def generate(address: Address, wishes: list[Wish]) -> list[list[int]]:
    async def all_of_them() -> list[list[int]]:
        generator = NodeGenerator(Table((address,)), RECOVERY_S, ANSWER_TIMEOUT_S)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.gather(*(tokens_of(generator, wish) for wish in wishes))
        finally:
            generator.close()

    return asyncio.run(all_of_them())


def delay(proxies: list[LinkProxy], rng: random.Random) -> None:
    for proxy in proxies:
        proxy.faults.delay_s = 0.002


def slow(proxies: list[LinkProxy], rng: random.Random) -> None:
    for proxy in proxies:
        proxy.faults.bytes_per_s = 2e6


def cut(proxies: list[LinkProxy], rng: random.Random) -> None:
    """Every connection ends somewhere in its first frames, most of them in the middle of one."""
    directions: tuple[Direction, ...] = ("to server", "to client")
    for proxy in proxies:
        # Those to nodes carry a prompt and tokens, some hundred bytes; the others carry rows, up to 16 KB a frame.
        low, high = (300, 1500) if proxy is proxies[-1] else (20_000, 60_000)
        proxy.faults.always_cut.extend((directions[n % 2], rng.randrange(low, high)) for n in range(32))
        proxy.loop.post(proxy.reset)


def reset_now_and_then(proxies: list[LinkProxy], rng: random.Random) -> None:
    proxy = rng.choice(proxies)
    proxy.loop.post(proxy.reset)


def half_open_now_and_then(proxies: list[LinkProxy], rng: random.Random) -> None:
    """One link swallows what comes, until it has been noticed; connections that are made meanwhile too."""
    proxy = rng.choice(proxies)
    proxy.faults.silent = True
    threading.Event().wait(1.5 * ANSWER_TIMEOUT_S)
    proxy.faults.silent = False
    proxy.loop.post(proxy.reset)  # a connection that was begun meanwhile would wait for the handshake's end


@pytest.mark.parametrize("over_tcp", [False, True])
@pytest.mark.parametrize("fault", [delay, slow, cut])
def test_streams_over_faulty_links(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[list[LinkProxy], random.Random], None],
    over_tcp: bool,
    seed: int,
) -> None:
    monkeypatch.setattr(transport.replicas, "PAUSE_S", 0.01)
    wishes, rng = make_wishes(seed), random.Random(seed)
    expected = [outcome.tokens for outcome in run(LocalModel(directory), wishes)]
    with service_behind_proxies(directory, SETTINGS, over_tcp, ANSWER_TIMEOUT_S) as service:
        address, proxies = service.address, service.proxies
        fault(proxies, rng)
        assert generate(address, wishes) == expected
        if fault is cut:
            assert sum(proxy.num_connections for proxy in proxies) > 2 * len(proxies)


@pytest.mark.parametrize("over_tcp", [False, True])
@pytest.mark.parametrize(
    ("fault", "pause_s"), [(reset_now_and_then, 0.25), (half_open_now_and_then, 0.5)], ids=["reset", "half-open"]
)
def test_streams_while_links_fail_now_and_then(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[list[LinkProxy], random.Random], None],
    pause_s: float,
    over_tcp: bool,
    seed: int,
) -> None:
    monkeypatch.setattr(transport.replicas, "PAUSE_S", 0.01)
    wishes, rng = make_wishes(seed), random.Random(seed)
    expected = [outcome.tokens for outcome in run(LocalModel(directory), wishes)]
    with service_behind_proxies(directory, SETTINGS, over_tcp, ANSWER_TIMEOUT_S) as service:
        address, proxies = service.address, service.proxies
        for proxy in proxies:
            proxy.faults.delay_s = 0.001  # so that the streams last a while
        with again_and_again(lambda: fault(proxies, rng), pause_s):
            for _ in range(MAX_ROUNDS):  # on a quiet machine the first streams may end before the first fault
                assert generate(address, wishes) == expected
                if sum(proxy.num_connections for proxy in proxies) > len(proxies):
                    break
        assert sum(proxy.num_connections for proxy in proxies) > len(proxies), "something was made anew"
