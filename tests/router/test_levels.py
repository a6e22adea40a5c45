"""A router's gates at each routing level, end to end and with malformed requests.

T rows, D model dim, E experts, K chosen experts per row, S tasks.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from protos.dispatch_pb2 import Header, LayerRows
from router.core import Router
from router.gating import top_k_gate
from router.levels import Gates, SentenceGates, TaskGates
from tests.router.fleet import Answers, Weights, cut, never, random_weights, serve_shard
from transport.base import Request
from transport.local import LocalPeer
from transport.replicas import Replicas
from transport.tensors import gate_rows_header, layer_header, task_header

NUM_EXPERTS = 5
WIDTH = 8
TOP_K = 2


@pytest.fixture
def layers(seed: int) -> list[Weights]:
    generator = torch.Generator().manual_seed(seed)
    return [random_weights(NUM_EXPERTS, WIDTH, 16, generator) for _ in range(2)]


def make_router(gates: Gates, layers: list[Weights], dead: tuple[int, ...] = (), degrade: bool = False) -> Router:
    """A router of `gates` with an actor for each expert; the `dead` ones never answer."""
    shards = cut(NUM_EXPERTS, 1, 1)
    services = {entry.replicas[0]: (entry, serve_shard(layers, entry)) for entry in shards}

    def connect(address: object) -> LocalPeer:
        entry, service = services[address]  # pyright: ignore[reportArgumentType]
        peer = LocalPeer(service)
        peer.ready = entry.expert_ids[0] not in dead
        return peer

    router = Router(gates, Replicas(connect, never, 1.0), degrade)
    router.update(shards)
    return router


def ask(router: Router, header: Header, rows_TD: Tensor) -> Answers:
    answers = Answers()
    router.serve([Request(header, rows_TD, answers)])
    return answers


def by_hand(layer: Weights, rows_TD: Tensor, logits_TE: Tensor) -> Tensor:
    """Rows through the experts that other logits choose, one row at a time."""
    answer_TD = torch.zeros_like(rows_TD)
    for row, logits_E in enumerate(logits_TE):
        chosen_K, experts_K = logits_E.topk(TOP_K)
        for weight, expert in zip(chosen_K.softmax(0), experts_K.tolist(), strict=True):
            answer_TD[row] += weight * layer.expert(expert, rows_TD[row : row + 1])[0]
    return answer_TD


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_sentence_gates_see_the_gate_rows(layers: list[Weights], num_rows: int, seed: int) -> None:
    router = make_router(SentenceGates([layer.gate_ED for layer in layers], TOP_K), layers)
    rows_TD, gate_rows_TD = torch.randn(2, num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    sent_TD = torch.cat((rows_TD, gate_rows_TD))
    for number, layer in enumerate(layers):
        answers = ask(router, gate_rows_header(number, sent_TD), sent_TD)
        assert torch.allclose(answers.rows, by_hand(layer, rows_TD, gate_rows_TD @ layer.gate_ED.T), atol=1e-5)
    assert sum(router.rows_per_expert) == 2 * num_rows * TOP_K


@pytest.mark.parametrize("counts", [((2, 1),), ((0, 3), (2, 1), (1, 2), (0, 1))])
def test_task_gates_choose_by_task(layers: list[Weights], counts: tuple[tuple[int, int], ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(3, NUM_EXPERTS, generator=generator) for _ in layers]
    router = make_router(TaskGates(tables, TOP_K, WIDTH), layers)
    tasks = [task for task, count in counts for _ in range(count)]
    rows_TD = torch.randn(len(tasks), WIDTH, generator=generator)
    for number, (layer, table_SE) in enumerate(zip(layers, tables, strict=True)):
        answers = ask(router, task_header(number, counts, rows_TD), rows_TD)
        assert torch.allclose(answers.rows, by_hand(layer, rows_TD, table_SE[tasks]), atol=1e-5)


def test_both_do_without_missing_experts(layers: list[Weights], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD, gate_rows_TD = torch.randn(2, 4, WIDTH, generator=generator)
    tables = [torch.randn(2, NUM_EXPERTS, generator=generator) for _ in layers]
    sent_TD, counts = torch.cat((rows_TD, gate_rows_TD)), ((1, 3), (0, 1))
    gates = SentenceGates([layer.gate_ED for layer in layers], TOP_K)
    for level, header, rows, logits_TE in (
        (gates, gate_rows_header(0, sent_TD), sent_TD, gate_rows_TD @ layers[0].gate_ED.T),
        (TaskGates(tables, TOP_K, WIDTH), task_header(0, counts, rows_TD), rows_TD, tables[0][[1, 1, 1, 0]]),
    ):
        router = make_router(level, layers, dead=(1, 4), degrade=True)
        answer = ask(router, header, rows).degraded
        assert answer.missing_experts == (1, 4)
        logits_TE[:, [1, 4]] = -torch.inf
        assert torch.allclose(answer.rows_TD, by_hand(layers[0], rows_TD, logits_TE), atol=1e-5)
        assert router.num_degraded_rows == 4


def of(rows: int, width: int = WIDTH) -> Tensor:
    return torch.zeros(rows, width)


@pytest.mark.parametrize(
    ("make_header", "rows_TD", "words"),
    [
        (lambda rows: layer_header(0, rows), of(4), "has_gate_rows False; allowed, as the model routes by sentence"),
        (lambda rows: gate_rows_header(0, rows), of(3), "3 rows, has_gate_rows True"),
        (lambda rows: gate_rows_header(2, rows), of(4), "layer 2 and rows"),
        (lambda rows: gate_rows_header(0, rows), of(4, 7), "rows of 8 elements"),
        (lambda rows: gate_rows_header(0, rows), of(0), "at least one row"),
    ],
)
def test_malformed_gate_rows(
    layers: list[Weights], make_header: Callable[[Tensor], Header], rows_TD: Tensor, words: str
) -> None:
    router = make_router(SentenceGates([layer.gate_ED for layer in layers], TOP_K), layers)
    error = ask(router, make_header(rows_TD), rows_TD).error
    assert error.code == "invalid_request"
    assert words in error.message


@pytest.mark.parametrize(
    ("task_ids", "counts"),
    [([], []), ([0], [3]), ([0], [5]), ([3], [4]), ([0, 1], [4]), ([0], [2, 2]), ([0, 1], [2, 3]), ([2**32 - 1], [4])],
)
def test_malformed_tasks(layers: list[Weights], task_ids: list[int], counts: list[int]) -> None:
    router = make_router(TaskGates([torch.zeros(3, NUM_EXPERTS)] * 2, TOP_K, WIDTH), layers)
    header = Header(layer_rows=LayerRows(task_ids=task_ids, num_rows_per_task=counts))
    error = ask(router, header, of(4)).error
    assert error.code == "invalid_request"
    assert "allowed, as the model routes by task: tasks 0 to 2, with 4 rows together" in error.message
    for layer, rows_TD in ((2, of(1)), (0, of(1, 7))):
        error = ask(router, task_header(layer, ((0, 1),), rows_TD), rows_TD).error
        assert "layers 0 to 1" in error.message


def test_headers_of_many_runs_are_not_remembered() -> None:
    rows_TD = torch.zeros(20, WIDTH)
    few, many = ((1, 20),), tuple((task % 2, 1) for task in range(20))
    assert task_header(0, few, rows_TD) is task_header(0, few, rows_TD)
    assert task_header(0, many, rows_TD) is not task_header(0, many, rows_TD)
    assert task_header(0, many, rows_TD) == task_header(0, many, rows_TD)
    assert not layer_header(0, rows_TD).layer_rows.has_gate_rows


def test_a_sequence_of_equal_gate_rows_has_one_choice(layers: list[Weights], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate_row_1D = torch.randn(1, WIDTH, generator=generator)
    router = make_router(SentenceGates([layer.gate_ED for layer in layers], TOP_K), layers)
    sent_TD = torch.cat((torch.randn(6, WIDTH, generator=generator), gate_row_1D.expand(6, -1)))
    ask(router, gate_rows_header(0, sent_TD), sent_TD)
    _, experts_1K = top_k_gate(gate_row_1D, layers[0].gate_ED, TOP_K)
    assert router.rows_per_expert == [6 * (expert in experts_1K[0].tolist()) for expert in range(NUM_EXPERTS)]
