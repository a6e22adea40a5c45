"""GPUs that a service file leaves unused are named, with lines that fit them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.gpus import fitting_shares, unused_gpus
from cluster.spec import spec_from_dict


def said(num_gpus: float, **sections: Any) -> str | None:
    return unused_gpus(num_gpus, spec_from_dict({"model": {"path": "demo"}, **sections}), num_experts=8)


def test_nothing_is_said_where_all_parts_use_them_or_there_are_none() -> None:
    assert said(0) is None
    assert said(8, attention={"num_gpus": 0.1}, experts={"num_gpus": 0.9}) is None
    assert said(8, attention={"num_gpus": 1}, experts={"overrides": {0: {"num_gpus": 1}}}) is None


def test_the_lines_that_use_them() -> None:
    assert said(8) == (
        "Ray has 8 GPUs, and attention nodes and experts compute on CPUs. To use GPUs, have in the service file:\n"
        "  attention: {num_gpus: 0.1}\n  experts: {num_gpus: 0.9}"
    )
    assert said(1, attention={"num_gpus": 0.1}) == (
        "Ray has 1 GPU, and experts compute on CPUs. To use GPUs, have in the service file:\n"
        "  experts: {num_gpus: 0.1125}"
    )
    assert str(said(2, experts={"num_gpus": 0.2})).endswith("service file:\n  attention: {num_gpus: 0.1}")


@given(num_gpus=st.integers(1, 64), num_experts=st.integers(1, 128))
def test_what_is_advised_finds_room(num_gpus: int, num_experts: int) -> None:
    """One node and every expert, filled in one GPU after the other; and the file takes the lines."""
    node, expert = fitting_shares(num_gpus, num_experts)
    assert expert > 0, "else nothing would be used"
    spec_from_dict({"model": {"path": "demo"}, "attention": {"num_gpus": node}, "experts": {"num_gpus": expert}})
    free = [1.0] * num_gpus
    for share in [node, *[expert] * num_experts]:
        gpu = next(index for index, left in enumerate(free) if left >= share - 1e-9)
        free[gpu] -= share
