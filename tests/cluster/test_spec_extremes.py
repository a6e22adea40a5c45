"""Numbers and texts that no service can have are refused before anything is started."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import ServiceSpec, SpecError, shards, spec_for_model
from spec.fields import MAX_SECONDS
from spec.section import Section, section_in

ROOM = Room((2.0,), own=True)
# 2^64 threads, bytes or seconds overflow in whatever library comes first; 10^300 is no float64 that clocks can add.
TOO_MUCH = (2**64, 10**300, 1e300, math.inf, math.nan, -1, -1e-9)


def number_fields(section: type[Section], path: str = "") -> Iterator[str]:
    """The paths of every field that may hold a number."""
    for name, field in section.model_fields.items():
        inner, types = section_in(field.annotation), (field.annotation, *get_args(field.annotation))
        if inner is not None:
            yield from number_fields(inner, f"{path}{name}{'.0' if dict in types or name == 'overrides' else ''}.")
        elif int in types or float in types:
            yield f"{path}{name}"


FIELDS = tuple(number_fields(ServiceSpec))


def test_the_fields_are_found() -> None:
    assert {"limits.load_timeout_s", "experts.overrides.0.replicas.max", "attention.cache_tokens"} <= set(FIELDS)
    assert len(FIELDS) > 40


@pytest.mark.parametrize("field", FIELDS)
def test_no_number_is_unbounded(field: str) -> None:
    for value in TOO_MUCH:
        with pytest.raises(SpecError, match=field.rpartition(".")[2]):
            spec_for_model("demo", {field: value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("limits.heartbeat_timeout_s", 1e-6, "a number of seconds from 0.5 to 100000000"),
        ("limits.answer_timeout_s", 0.01, "a number of seconds from 0.5"),
        ("limits.orphan_timeout_s", 1e-300, "a number of seconds from 0.5"),
        ("autoscaling.interval_s", 1e-6, "a number of seconds from 0.1"),
        ("limits.load_timeout_s", MAX_SECONDS + 1, "above 0, at most 100000000"),
        ("experts.replicas", 4097, "a whole number from 1 to 4096"),
        ("router.replicas.max", 10**6, "a whole number from 1 to 4096"),
        ("attention.num_cpus", 1e6, "auto or a number from 0 to 4096"),
    ],
)
def test_what_would_replace_everything_for_ever_or_never_find_room(field: str, value: Any, allowed: str) -> None:
    overrides: dict[str, object] = {field: value}
    if field.endswith(".max"):
        overrides[f"{field[:-3]}min"] = 1
    with pytest.raises(SpecError, match=allowed):
        spec_for_model("demo", overrides)


@pytest.mark.parametrize("slices", [321, 2**31 - 1])
def test_experts_are_not_cut_into_more_slices_than_they_have_columns(slices: int) -> None:
    with pytest.raises(SpecError, match=r"experts.slices: \d+ was given; allowed: auto or 1 to 320, the hidden"):
        resolve(spec_for_model("demo", {"experts.slices": slices}), ROOM, loopback=True)


def test_actors_have_a_bound() -> None:
    most = spec_for_model("demo", {"experts.slices": 512, "experts.per_actor": 1})
    assert len(shards(most, num_experts=8, num_cpus=2)) == 4096
    more = spec_for_model("demo", {"experts.slices": 513, "experts.per_actor": 1})
    with pytest.raises(SpecError, match="8 groups of experts in 513 slices each were asked for; allowed: 4096 actors"):
        shards(more, num_experts=8, num_cpus=2)
