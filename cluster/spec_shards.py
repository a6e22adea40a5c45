"""Which expert actors a specification asks for: pure arithmetic on the number of experts and of cores."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cluster.spec_errors import Problem, SpecError
from cluster.spec_schema import ExpertsSpec, ServiceSpec

MAX_AUTO_SLICES = 8  # each further slice is one more peer on every layer's hop


@dataclass(frozen=True)
class ShardPlan:
    """What one expert actor holds. With `num_slices` above 1 it holds that part of its experts' hidden columns.

    A shard's output then is a partial sum: the outputs of all `num_slices` shards of the same experts add up.
    """

    index: int
    expert_ids: tuple[int, ...]
    slice_index: int
    num_slices: int
    replicas: int


def shards(spec: ServiceSpec, num_experts: int, num_cpus: int) -> tuple[ShardPlan, ...]:
    """The shards of a service, by index; the slices of one group of experts are neighbours.

    Args:
        spec: The service.
        num_experts: Experts of one layer of the checkpoint.
        num_cpus: Cores that expert actors may use; only `auto` looks at it.

    Raises:
        SpecError: `experts.per_actor` exceeds the experts there are, or `experts.overrides` names an expert that
            does not exist, or two overrides disagree about one shard.
    """
    per_actor, slices = layout(spec.experts, num_experts, num_cpus)
    groups = expert_groups(num_experts, per_actor)
    replicas = _replicas_of_groups(spec.experts, groups, num_experts)
    pairs = ((group, part) for group in range(len(groups)) for part in range(slices))
    return tuple(
        ShardPlan(index, groups[group], part, slices, replicas[group]) for index, (group, part) in enumerate(pairs)
    )


def layout(experts: ExpertsSpec, num_experts: int, num_cpus: int) -> tuple[int, int]:
    """(experts in one actor, slices of each expert), with every `auto` decided.

    Raises:
        SpecError: `per_actor` exceeds the experts there are.
    """
    per_actor = None if experts.per_actor == "auto" else experts.per_actor
    slices = None if experts.slices == "auto" else experts.slices
    if per_actor is not None and per_actor > num_experts:
        allowed = f"{per_actor} was given; allowed: auto or 1 to {num_experts}, the experts of this checkpoint."
        raise SpecError([Problem("experts.per_actor", allowed)])
    if experts.num_gpus > 0:
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


def _replicas_of_groups(experts: ExpertsSpec, groups: tuple[tuple[int, ...], ...], num_experts: int) -> tuple[int, ...]:
    """Replicas of each group. Raises SpecError for overrides that name no expert or disagree."""
    problems = list(_unknown_experts(experts, num_experts))
    counts: list[int] = []
    for group in groups:
        wanted = {expert_id: _override(experts, expert_id) for expert_id in group}
        given = {expert_id: num for expert_id, num in wanted.items() if num is not None}
        if len(set(given.values())) > 1:
            problems.append(_disagreement(given))
        counts.append(next(iter(given.values()), experts.replicas.num))
    if problems:
        raise SpecError(problems)
    return tuple(counts)


def _override(experts: ExpertsSpec, expert_id: int) -> int | None:
    override = experts.overrides.get(expert_id)
    return override.replicas.num if override and override.replicas else None


def _unknown_experts(experts: ExpertsSpec, num_experts: int) -> Iterator[Problem]:
    for expert_id in experts.overrides:
        if expert_id >= num_experts:
            text = f"names no expert of this checkpoint; allowed: 0 to {num_experts - 1}."
            yield Problem(f"experts.overrides.{expert_id}", text)


def _disagreement(given: dict[int, int]) -> Problem:
    asked = ", ".join(f"expert {expert_id} asks for {num} replicas" for expert_id, num in given.items())
    text = f"{asked}, yet they share one shard, which has one number. Make them equal, or lower experts.per_actor."
    return Problem("experts.overrides", text)
