"""The computation of an expert actor: merged calls equal separate ones, and a malformed one fails alone.

N rows, D model dim.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.ffn import ExpertFFN
from experts.service import ExpertService
from tests.experts.shards import WIDTH, Answers, call, close, random_shard
from transport.base import Request

CPU = torch.device("cpu")
SHARD = random_shard(seed=1)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[Request, Answers]]:
    """Calls for either layer, any experts of the shard in any order, one or more rows each."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    made: list[tuple[Request, Answers]] = []
    for _ in range(draw(st.integers(1, 5))):
        experts = draw(st.permutations([0, 1, 2]))[: draw(st.integers(1, 3))]
        counts = {expert: draw(st.integers(1, 4)) for expert in experts}
        rows_ND = torch.randn(sum(counts.values()), WIDTH, generator=generator)
        made.append(call(draw(st.integers(0, 1)), counts, rows_ND))
    return made


@given(calls())
def test_calls_served_together_get_their_own_answers(made: list[tuple[Request, Answers]]) -> None:
    service = ExpertService(SHARD.shard, CPU)
    service.serve([request for request, _ in made])
    for request, answers in made:
        expected_ND = SHARD.naive(request.header.expert_rows, request.rows_TD)
        assert torch.allclose(answers.rows, expected_ND, atol=1e-5)
    assert service.num_rows == sum(request.rows_TD.shape[0] for request, _ in made)


@pytest.mark.parametrize(
    ("counts", "sizes", "told"),
    [
        ({0: 1, 1: 2, 2: 2}, [1, 2, 2], [3]),  # no more than one product may have
        ({0: 1, 1: 3, 2: 2}, [1, 3, 2], [1, 2, 3]),
        ({1: 11}, [5, 5, 1], [1, 2, 3]),
    ],
)
def test_progress_is_told_after_as_much_as_one_product_may_be(
    counts: dict[int, int], sizes: list[int], told: list[int], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("experts.ffn.MAX_ROWS", 5)
    done, heard = list[int](), list[int]()
    product = ExpertFFN.product
    monkeypatch.setattr(ExpertFFN, "product", lambda ffn, rows_ND: done.append(len(rows_ND)) or product(ffn, rows_ND))
    shard = random_shard(seed)
    service = ExpertService(shard.shard, CPU, lambda: heard.append(len(done)))
    request, answers = call(0, counts, torch.randn(sum(counts.values()), WIDTH))
    service.serve([request])
    assert (done, heard) == (sizes, told)
    assert torch.allclose(answers.rows, shard.naive(request.header.expert_rows, request.rows_TD), atol=1e-5)


@given(calls())
def test_merged_calls_equal_separate_ones(made: list[tuple[Request, Answers]]) -> None:
    service = ExpertService(SHARD.shard, CPU)
    service.serve([request for request, _ in made])
    for request, together in made:
        alone = Answers()
        service.serve([request._replace(responder=alone)])
        assert torch.allclose(together.rows, alone.rows, atol=1e-5)


def test_waiting_rows_of_one_layer_and_expert_are_one_matmul(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = random_shard(seed)
    num_rows: list[int] = []
    ffn = shard.shard.ffn(0, 1)
    assert ffn is not None
    monkeypatch.setattr(
        shard.shard, "ffn", lambda layer, expert: lambda rows, told: num_rows.append(len(rows)) or ffn(rows, told)
    )
    made = [call(0, {1: count}, torch.randn(count, WIDTH)) for count in (2, 3, 1)]
    ExpertService(shard.shard, CPU).serve([request for request, _ in made])
    assert num_rows == [6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_another_dtype_are_computed_in_the_shards(dtype: torch.dtype, seed: int) -> None:
    shard = random_shard(seed, dtype=dtype)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    rows_ND = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed)).to(other)
    request, answers = call(1, {0: 1, 2: 2}, rows_ND)
    ExpertService(shard.shard, CPU).serve([request])
    assert answers.rows.dtype == dtype
    expected_ND = shard.naive(request.header.expert_rows, rows_ND.float())
    assert close(answers.rows, expected_ND, dtype)


MALFORMED = [
    (0, {}, (0, WIDTH), r"row counts \[\] do not describe 0 rows"),
    (0, {}, (2, WIDTH), r"row counts \[\] do not describe 2 rows"),
    (0, {1: 3}, (2, WIDTH), r"row counts \[3\] do not describe 2 rows"),
    (0, {1: 1, 2: 0}, (1, WIDTH), r"row counts \[1, 0\] do not describe 1 rows"),
    (0, {1: 2}, (2, WIDTH + 1), f"rows of {WIDTH + 1} elements; allowed: {WIDTH}"),
    (0, {1: 2}, (2, 0), f"rows of 0 elements; allowed: {WIDTH}"),
    (0, {3: 2}, (2, WIDTH), "layer 0, expert 3 is not of this shard"),
    (0, {1: 1, 7: 1}, (2, WIDTH), "layer 0, expert 7 is not of this shard"),
    (2, {1: 2}, (2, WIDTH), "layer 2, expert 1 is not of this shard"),
]


@pytest.mark.parametrize(("layer", "counts", "shape", "message"), MALFORMED)
def test_a_malformed_call_fails_alone(
    layer: int, counts: dict[int, int], shape: tuple[int, int], message: str, seed: int
) -> None:
    service = ExpertService(SHARD.shard, CPU)
    bad, refused = call(layer, counts, torch.zeros(shape))
    rows_ND = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    good, answered = call(0, {1: 2}, rows_ND)
    service.serve([good._replace(responder=Answers()), bad, good])
    assert refused.error.code == "invalid_request"
    with pytest.raises(Exception, match=message):
        raise refused.error
    assert torch.allclose(answered.rows, SHARD.naive(good.header.expert_rows, rows_ND), atol=1e-5)


@pytest.mark.parametrize("num_counts", [4, 10**6])
def test_more_counts_than_experts_cost_nothing(num_counts: int) -> None:
    request, answers = call(0, {1: 1}, torch.zeros(1, WIDTH))
    request.header.expert_rows.num_rows_per_expert.extend([1] * (num_counts - 1))
    ExpertService(SHARD.shard, CPU).serve([request])
    assert answers.error.message == f"{num_counts} counts of rows; allowed: one for each of the 3 experts"


def test_as_many_counts_as_experts() -> None:
    request, answers = call(0, {1: 1, 2: 1}, torch.zeros(2, WIDTH))
    del request.header.expert_rows.num_rows_per_expert[1]
    ExpertService(SHARD.shard, CPU).serve([request])
    assert answers.error.code == "invalid_request"
