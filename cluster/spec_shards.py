"""Which expert actors a specification asks for: pure arithmetic on the number of experts and of cores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from cluster.spec_schema import SUBJECT, ExpertsSpec, ServiceSpec, ShardOverride
from spec.errors import Problem, SpecError, show
from spec.fields import Auto
from spec.replicas import ONE, Replicas

MAX_AUTO_SLICES = 8  # each further slice is one more peer on every layer's hop
MAX_SHARDS = 4096  # each is a process at least, and every router speaks to all of them in every layer


@dataclass(frozen=True)
class ShardPlan:
    """What one expert actor holds. With `num_slices` above 1 it holds that part of its experts' hidden columns.

    A shard's output then is a partial sum: the outputs of all `num_slices` shards of the same experts add up.

    Args:
        replicas: The fewest and the most replicas of it.
        num_gpus: Of one replica; fractions allowed.
        num_cpus: Of one replica.
        accelerator_type: What replicas must run on, in Ray's words; None: anything.
        labels: The Ray labels of the hosts that replicas may run on.
    """

    index: int
    expert_ids: tuple[int, ...]
    slice_index: int
    num_slices: int
    replicas: Replicas = ONE
    num_gpus: float = 0
    num_cpus: float | Auto = "auto"
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def num_replicas(self) -> int:
        """How many to start with."""
        return self.replicas.num

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What its replicas compute on."""
        return "cuda" if self.num_gpus > 0 else "cpu"


def shards(spec: ServiceSpec, num_experts: int, num_cpus: int) -> tuple[ShardPlan, ...]:
    """The shards of a service, by index; the slices of one group of experts are neighbours.

    Args:
        spec: The service.
        num_experts: Experts of one layer of the checkpoint.
        num_cpus: Cores that expert actors may use; only `auto` looks at it.

    Raises:
        SpecError: `experts.per_actor` exceeds the experts there are, or `experts.overrides` names an expert that
            does not exist, or two overrides disagree about one shard, or there are over MAX_SHARDS.
    """
    per_actor, slices = layout(spec.experts, num_experts, num_cpus)
    _check_number(-(-num_experts // per_actor), slices)
    groups = expert_groups(num_experts, per_actor)
    settings = _settings_of_groups(spec.experts, groups, num_experts)
    pairs = ((group, part) for group in range(len(groups)) for part in range(slices))
    return tuple(
        ShardPlan(index, groups[group], part, slices, **settings[group]) for index, (group, part) in enumerate(pairs)
    )


def _check_number(num_groups: int, slices: int) -> None:
    """Raises SpecError if so many groups in so many slices are more actors than a service can have."""
    if num_groups * slices > MAX_SHARDS:
        text = (
            f"{num_groups} groups of experts in {slices} slices each were asked for; allowed: {MAX_SHARDS} actors in "
            "all. Lower experts.slices, or raise experts.per_actor."
        )
        raise SpecError([Problem("experts.slices", text)])


def layout(experts: ExpertsSpec, num_experts: int, num_cpus: int) -> tuple[int, int]:
    """(experts in one actor, slices of each expert), with every `auto` decided: GPUs, even of one shard, decide it.

    Raises:
        SpecError: `per_actor` exceeds the experts there are.
    """
    per_actor = None if experts.per_actor == "auto" else experts.per_actor
    slices = None if experts.slices == "auto" else experts.slices
    if per_actor is not None and per_actor > num_experts:
        allowed = f"{per_actor} was given; allowed: auto or 1 to {num_experts}, the experts of this checkpoint."
        raise SpecError([Problem("experts.per_actor", allowed)])
    if experts.num_gpus > 0 or any(override.num_gpus for override in experts.overrides.values()):
        return per_actor or 1, slices or 1
    return cpu_default_shards(num_experts, num_cpus, per_actor, slices)


def cpu_default_shards(
    num_experts: int, num_cpus: int, per_actor: int | None = None, slices: int | None = None
) -> tuple[int, int]:
    """(experts in one actor, slices of each expert) on CPUs; a given one is kept, None is chosen.

    Left free, every actor holds a slice of every expert, one actor a core: whichever experts a row picks, all cores
    then share its work evenly, where whole experts would leave cores idle whenever the picked ones share an actor.

    >>> cpu_default_shards(8, 2)               # two actors, each half of all eight experts
    (8, 2)
    >>> cpu_default_shards(8, 2, per_actor=4)  # two actors already: no slices
    (4, 1)
    >>> cpu_default_shards(8, 4, slices=2)     # two groups of four experts, each in two slices
    (4, 2)
    """
    if slices is not None:
        num_groups = min(num_experts, max(1, num_cpus // slices))
        return per_actor or -(-num_experts // num_groups), slices
    per_actor = per_actor or num_experts
    num_groups = -(-num_experts // per_actor)
    return per_actor, max(1, min(num_cpus // num_groups, MAX_AUTO_SLICES))


def expert_groups(num_experts: int, per_actor: int) -> tuple[tuple[int, ...], ...]:
    """Cuts experts 0 … num_experts-1 into runs of at most `per_actor`, whose lengths differ by one at most.

    >>> expert_groups(8, 3)
    ((0, 1, 2), (3, 4, 5), (6, 7))
    """
    num_groups = -(-num_experts // per_actor)
    size, longer = divmod(num_experts, num_groups)
    starts = [group * size + min(group, longer) for group in range(num_groups + 1)]
    return tuple(tuple(range(first, end)) for first, end in pairwise(starts))


# What an override may set; the names are those of `experts`, of an override and of a ShardPlan.
SETTINGS = tuple(ShardOverride.model_fields)


def _settings_of_groups(
    experts: ExpertsSpec, groups: tuple[tuple[int, ...], ...], num_experts: int
) -> list[dict[str, Any]]:
    """SETTINGS of each group. Raises SpecError for overrides that name no expert or disagree."""
    problems = list(_unknown_experts(experts, num_experts))
    settings: list[dict[str, Any]] = []
    for group in groups:
        settings.append({})
        for name in SETTINGS:
            given = _given(experts, group, name)
            problems += _disagreement(name, given)
            settings[-1][name] = next(iter(given.values()), getattr(experts, name))
    if problems:
        raise SpecError(problems, subject=SUBJECT)
    return settings


def _given(experts: ExpertsSpec, group: tuple[int, ...], name: str) -> dict[int, Any]:
    """What the overrides of a group's experts say of one setting, by expert id; those that leave it open are absent."""
    values = {expert_id: getattr(experts.overrides.get(expert_id), name, None) for expert_id in group}
    return {expert_id: value for expert_id, value in values.items() if value is not None}


def _unknown_experts(experts: ExpertsSpec, num_experts: int) -> Iterator[Problem]:
    for expert_id in experts.overrides:
        if expert_id >= num_experts:
            text = f"names no expert of this checkpoint; allowed: 0 to {num_experts - 1}."
            yield Problem(f"experts.overrides.{expert_id}", text)


def _disagreement(name: str, given: dict[int, Any]) -> Iterator[Problem]:
    first = next(iter(given.values()), None)
    if all(value == first for value in given.values()):
        return
    asked = ", ".join(f"expert {expert_id} asks for {name} {_written(value)}" for expert_id, value in given.items())
    text = f"{asked}, yet they share one shard. Make them equal, or lower experts.per_actor."
    yield Problem("experts.overrides", text)


def _written(value: object) -> str:
    """A setting as the service file has it."""
    if isinstance(value, Replicas):
        return str(value.num) if value.min == value.max else f"{{min: {value.min}, max: {value.max}}}"
    return show(value)
