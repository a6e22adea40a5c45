"""Rows that are drawn in different ways in one step: each as it would be alone, and without copies of the others."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attention.sampling import Sampler
from protos.generation_pb2 import Sampling
from tests.attention.small_engine import bad_words

CPU = torch.device("cpu")
EOS = (2, 3)
VOCABULARY = 130
FEW = [1, 2, 4, 30, 129]
WAYS = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
)


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Mostly one way of drawing for all of a batch, and few edits: both sides of what is worth a copy."""
    return Sampling(
        **draw(st.sampled_from(WAYS)),
        seed=draw(st.integers(0, 2**64 - 1)),
        **draw(
            st.sampled_from(
                [
                    *[{}] * 4,
                    {"min_tokens": 2},
                    {"min_tokens": 1, "logit_bias": {4: 3.0}},
                    {"logit_bias": {30: 50.0}},
                    {"allowed_token_ids": FEW},
                    {"frequency_penalty": 2.0, "min_tokens": 3},
                    bad_words([4], [30, 30]),
                ]
            )
        ),
    )


def logits_of(num_rows: int, seed: int, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return (3 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed))).to(dtype)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(samplings(), min_size=1, max_size=3),
    st.lists(samplings(), max_size=3),
    st.integers(0, 30),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_every_row_is_drawn_as_alone(
    many: list[Sampling], few: list[Sampling], num_more: int, dtype: torch.dtype, seed: int
) -> None:
    asked = [*few, *many, *(many[0] for _ in range(num_more))]
    together = Sampler(VOCABULARY, len(asked), EOS, CPU)
    alone = [Sampler(VOCABULARY, 1, EOS, CPU) for _ in asked]
    for lane, sampling in enumerate(asked):
        together.add(lane, sampling, FEW, [])
        alone[lane].add(0, sampling, FEW, [])
    for step in range(5):
        logits = logits_of(len(asked), seed + step, dtype)
        if step == 2:
            logits[-1] = float("nan")
        expected = [sampler.sample(logits[[lane]], [0]) for lane, sampler in enumerate(alone)]
        sampled = together.sample(logits, range(len(asked)))
        assert sampled.token_ids == [one.token_ids[0] for one in expected]
        assert sampled.failed == {row: one.failed[0] for row, one in enumerate(expected) if one.failed}


class CountNew(TorchDispatchMode):
    """Counts the elements of what operations make anew."""

    num = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        given = {one.untyped_storage().data_ptr() for one in tensors}
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
            self.num += made.numel()
        return made


@pytest.mark.parametrize(
    ("few", "many", "num_rows"),
    [
        ({"allowed_token_ids": [5, 6]}, {}, 1),
        (bad_words([5]), {}, 1),
        ({"logit_bias": {5: 1.0}}, {}, 1),
        ({"repetition_penalty": 1.5}, {}, 1),
        ({"min_tokens": 9}, {}, 1),
        ({"min_tokens": 1}, {}, 0),  # passed by then
        ({"temperature": 1.0}, {}, 3),  # drawing it takes a few copies of its own
        ({"logit_bias": {5: 1.0}}, {"temperature": 1.0}, 4),
        ({}, {"temperature": 1.0}, 2),
    ],
)
def test_what_one_row_asks_for_copies_no_other(few: dict[str, Any], many: dict[str, Any], num_rows: int) -> None:
    vocabulary, num_many = 4096, 31
    logits = logits_of(num_many + 1, 1, torch.float32, vocabulary)
    sampler = Sampler(vocabulary, num_many + 1, EOS, CPU)
    for lane in range(num_many + 1):
        sampler.add(lane, Sampling(**(few if lane == 9 else many)), [], [])
    for _ in range(2):
        sampler.sample(logits, range(num_many + 1))
    with CountNew() as count:
        sampler.sample(logits, range(num_many + 1))
    assert count.num <= (num_rows + 0.5) * vocabulary


def test_the_best_tokens_of_few_rows_are_no_reason_to_convert_all_of_them() -> None:
    vocabulary, num_rows = 4096, 32
    sampler = Sampler(vocabulary, num_rows, EOS, CPU)
    for lane in range(num_rows):
        sampler.add(lane, Sampling() if lane < 4 else Sampling(temperature=1.0, top_k=5), [], [])
    logits = logits_of(num_rows, 1, torch.bfloat16, vocabulary)
    sampler.sample(logits, range(num_rows))
    with CountNew() as count:
        sampler.sample(logits, range(num_rows))
    assert count.num <= 1.5 * num_rows * vocabulary  # once for those that are drawn
