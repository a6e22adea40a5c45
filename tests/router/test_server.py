"""Router and experts over real sockets, each in a thread of its own, as their processes run them.

D model dim, F expert hidden dim, E experts.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from router.levels import TokenGates
from router.server import RouterServer
from tests.router.fleet import Weights, cut, random_weights, serve_shard
from tests.transport.driving import CREDENTIALS, connected, random_rows, turn_until
from transport.address import Address
from transport.base import Answer, DegradedRows
from transport.errors import CallError
from transport.loop import Loop
from transport.socket import RequestServer
from transport.table import RoutingTable, ShardEntry
from transport.tensors import layer_header


class ExpertThread:
    """Serves one shard until `kill`."""

    def __init__(self, layers: list[Weights], entry: ShardEntry) -> None:
        self._loop = Loop()
        self._server = RequestServer(self._loop, "expert", CREDENTIALS, None, serve_shard(layers, entry))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    @property
    def address(self) -> Address:
        return self._server.address

    def kill(self) -> None:
        """As seen from outside: the connections end."""
        self._loop.stop()
        self._thread.join()
        self._server.close()


@contextmanager
def running_router(layers: list[Weights], recovery_timeout_s: float, degrade: bool = False) -> Iterator[RouterServer]:
    server = RouterServer(
        TokenGates([layer.gate_ED for layer in layers], 2), CREDENTIALS, None, recovery_timeout_s, degrade
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def table_of(
    experts: dict[tuple[int, int], list[ExpertThread]], version: int, num_slices: int, layout: str = ""
) -> RoutingTable:
    """A routing table; experts are keyed by (first expert, slice), two experts to a shard."""
    shards = tuple(
        ShardEntry((first, first + 1), index, num_slices, tuple(thread.address for thread in threads), layout)
        for (first, index), threads in experts.items()
    )
    return RoutingTable(version, shards)


@pytest.fixture
def layers(seed: int) -> list[Weights]:
    return [random_weights(4, 8, 16, torch.Generator().manual_seed(seed + layer)) for layer in range(2)]


def test_layers_over_sockets_and_a_replica_that_dies(layers: list[Weights], seed: int) -> None:
    loop = Loop()
    generator = torch.Generator().manual_seed(seed)
    experts: dict[tuple[int, int], list[ExpertThread]] = {}
    with ExitStack() as stack:
        for entry in cut(4, 2, num_slices=2):
            threads = [ExpertThread(layers, entry) for _ in range(2)]
            for thread in threads:
                stack.callback(thread.kill)
            experts[entry.expert_ids[0], entry.slice_index] = threads
        router = stack.enter_context(running_router(layers, recovery_timeout_s=20.0))
        assert not router.wait_ready(0.0)
        router.update(table_of(experts, 1, 2))
        assert router.wait_ready(20.0)
        node = connected(loop, router.address)

        def exchange(layer: int, num_rows: int) -> None:
            rows_TD, answers = torch.randn(num_rows, 8, generator=generator), list[torch.Tensor | CallError]()
            node.call(layer_header(layer, rows_TD), rows_TD, answers.append)
            turn_until(lambda: bool(answers), loop)
            assert isinstance(answers[0], torch.Tensor), answers[0]
            assert torch.allclose(answers[0], layers[layer].naive(rows_TD, 2), atol=1e-5)

        for number in range(20):
            exchange(number % 2, 1 + number % 5)
            if number in (5, 10):  # of two shards, the first replica
                experts[(0, 0) if number == 5 else (2, 1)][0].kill()
        assert sum(router.snapshot()["rows_per_expert"]) == 2 * sum(1 + number % 5 for number in range(20))  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert router.load().keys() == {"utilization", "queued"}
        assert 0 <= router.load()["utilization"] <= 1
        node.close()
    loop.close()


def test_an_expert_that_stays_away_ends_the_call(layers: list[Weights], seed: int) -> None:
    loop = Loop()
    entries = cut(4, 2, num_slices=1)
    with ExitStack() as stack:
        experts = {(entry.expert_ids[0], 0): [ExpertThread(layers, entry)] for entry in entries}
        for threads in experts.values():
            stack.callback(threads[0].kill)
        router = stack.enter_context(running_router(layers, recovery_timeout_s=0.3))
        router.update(table_of(experts, 1, 1))
        assert router.wait_ready(20.0)
        node = connected(loop, router.address)
        experts[0, 0][0].kill()
        rows_TD, answers = random_rows(16, 8, seed), list[torch.Tensor | CallError]()
        started_s = time.monotonic()
        node.call(layer_header(0, rows_TD), rows_TD, answers.append)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], CallError)
        assert answers[0].code == "expert_unavailable"
        assert "no replica of experts 0-1, slice 0 came back within 0.3 s" in answers[0].message
        assert 0.25 < time.monotonic() - started_s < 10.0
        node.close()
    loop.close()


def test_without_the_experts_that_are_gone(layers: list[Weights], seed: int) -> None:
    """One shard dies, then the other, then each comes back: at another address, as its replacement does."""
    loop = Loop()
    generator = torch.Generator().manual_seed(seed)
    first, second = cut(4, 2, num_slices=1)
    with ExitStack() as stack:

        def start(entry: ShardEntry) -> ExpertThread:
            thread = ExpertThread(layers, entry)
            stack.callback(thread.kill)
            return thread

        experts = {(0, 0): [start(first)], (2, 0): [start(second)]}
        router = stack.enter_context(running_router(layers, recovery_timeout_s=20.0, degrade=True))
        router.update(table_of({**experts, (2, 0): []}, 1, 1))
        assert not router.wait_ready(0.2), "at first every shard is waited for"
        router.update(table_of(experts, 2, 1))
        assert router.wait_ready(20.0)
        node = connected(loop, router.address)
        answers: list[Answer] = []

        def ask(layer: int, num_rows: int) -> torch.Tensor:
            rows_TD = torch.randn(num_rows, 8, generator=generator)
            answers.clear()
            node.call(layer_header(layer, rows_TD), rows_TD, answers.append)
            return rows_TD

        def exchange(layer: int, num_rows: int, missing: tuple[int, ...]) -> None:
            rows_TD = ask(layer, num_rows)
            turn_until(lambda: bool(answers), loop)
            check(layer, rows_TD, missing)

        def check(layer: int, rows_TD: torch.Tensor, missing: tuple[int, ...]) -> None:
            answer = answers[0]
            if missing:
                assert isinstance(answer, DegradedRows), answer
                assert answer.missing_experts == missing
                answer = answer.rows_TD
            assert isinstance(answer, torch.Tensor), answer
            assert torch.allclose(answer, layers[layer].naive(rows_TD, 2, missing), atol=1e-5)

        exchange(0, 5, missing=())
        experts[2, 0][0].kill()
        for number in range(6):
            exchange(number % 2, 1 + number, missing=(2, 3))
        assert router.snapshot()["degraded_rows_total"] == 1 + 2 + 3 + 4 + 5 + 6
        experts[0, 0][0].kill()
        rows_TD = ask(1, 4)
        for _ in range(3):
            loop.run_once(0.05)
        assert answers == [], "nobody is left: it waits"
        replaced = {(0, 0): [], (2, 0): [start(second)]}
        router.update(table_of(replaced, 3, 1))
        turn_until(lambda: bool(answers), loop)
        check(1, rows_TD, missing=(0, 1))
        router.update(table_of({**replaced, (0, 0): [start(first)]}, 4, 1))
        deadline_s = time.monotonic() + 20.0
        while not isinstance(answers[0], torch.Tensor):  # until the router has connected to it
            assert time.monotonic() < deadline_s
            rows_TD = ask(0, 3)
            turn_until(lambda: bool(answers), loop)
        check(0, rows_TD, missing=())
        node.close()
    loop.close()


@pytest.mark.parametrize("other_cut", [False, True], ids=["same cut", "other cut"])
@pytest.mark.parametrize("degrade", [False, True], ids=["wait", "degrade"])
def test_another_layout_takes_over_while_rows_are_under_way(
    layers: list[Weights], degrade: bool, other_cut: bool, seed: int
) -> None:
    """Without a missing expert in any answer: whatever the present layout lacks, the next one has it."""
    loop = Loop()
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:

        def start(num_slices: int) -> dict[tuple[int, int], list[ExpertThread]]:
            entries = cut(4, 2, num_slices)
            return {(entry.expert_ids[0], entry.slice_index): [ExpertThread(layers, entry)] for entry in entries}

        router = stack.enter_context(running_router(layers, 20.0, degrade))
        present = start(2)
        router.update(table_of(present, 1, 2))
        assert router.wait_ready(20.0)
        node = connected(loop, router.address)
        for version in range(2, 8):
            num_slices = 1 + version % 2 if other_cut else 2
            following = start(num_slices)
            asked = [torch.randn(3, 8, generator=generator) for _ in range(8)]
            answers: list[list[object]] = [[] for _ in asked]
            for number, (rows_TD, answer) in enumerate(zip(asked, answers, strict=True)):
                node.call(layer_header(number % 2, rows_TD), rows_TD, answer.append)
                if number == 3:
                    router.update(table_of(following, version, num_slices, str(version)))
            turn_until(lambda now=answers: all(now), loop)
            for number, (rows_TD, answer) in enumerate(zip(asked, answers, strict=True)):
                assert isinstance(answer[0], torch.Tensor), answer[0]
                assert torch.allclose(answer[0], layers[number % 2].naive(rows_TD, 2), atol=1e-5)
            for threads in present.values():
                threads[0].kill()
            present = following
        for threads in present.values():
            threads[0].kill()
        node.close()
    loop.close()


def test_a_table_that_does_not_cover_the_experts_is_refused_and_the_one_before_kept(
    layers: list[Weights], seed: int
) -> None:
    """Every router gets the same table: one that ended all of them would end the service."""
    loop = Loop()
    with ExitStack() as stack:
        experts = {(entry.expert_ids[0], 0): [ExpertThread(layers, entry)] for entry in cut(4, 2, num_slices=1)}
        for threads in experts.values():
            stack.callback(threads[0].kill)
        router = stack.enter_context(running_router(layers, recovery_timeout_s=20.0))
        router.update(table_of(experts, 1, 1))
        assert router.wait_ready(20.0)
        node = connected(loop, router.address)

        def exchange() -> None:
            rows_TD, answers = random_rows(3, 8, seed), list[torch.Tensor | CallError]()
            node.call(layer_header(0, rows_TD), rows_TD, answers.append)
            turn_until(lambda: bool(answers), loop)
            assert isinstance(answers[0], torch.Tensor), answers[0]
            assert torch.allclose(answers[0], layers[0].naive(rows_TD, 2), atol=1e-5)

        router.update(table_of({(0, 0): experts[0, 0]}, 2, 1))
        exchange()
        assert router.snapshot()["refused_table"] == "the shards hold experts [0, 1]; needed: each of 0 to 3, once"
        router.update(table_of({(0, 0): [], (2, 0): []}, 1, 1))  # older: it would let go of every expert
        exchange()
        router.update(table_of(experts, 3, 1))
        exchange()
        assert "refused_table" not in router.snapshot()
        node.close()
    loop.close()


def test_a_router_that_starts_while_the_layout_lacks_an_expert_is_ready_with_the_next_one(
    layers: list[Weights],
) -> None:
    first, second = cut(4, 2, num_slices=1)
    with ExitStack() as stack:

        def start(entry: ShardEntry) -> list[ExpertThread]:
            thread = ExpertThread(layers, entry)
            stack.callback(thread.kill)
            return [thread]

        router = stack.enter_context(running_router(layers, recovery_timeout_s=20.0))
        router.update(table_of({(0, 0): start(first), (2, 0): []}, 1, 1, "old"))
        assert not router.wait_ready(0.2)
        router.update(table_of({(0, 0): start(first), (2, 0): start(second)}, 2, 1, "new"))
        assert router.wait_ready(20.0)
