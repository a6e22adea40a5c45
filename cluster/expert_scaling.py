"""Scales the expert actors: each shard by its own load, so that a hot expert is replicated and the others are not."""

import asyncio
import time
from weakref import WeakKeyDictionary

from cluster.fleet import NUM_TRIES, ExpertFleet
from cluster.keeper import ExpertKeeper, Report
from cluster.metering import ExpertMeter
from cluster.scaling import Decision, History, Load, Rules, decide
from cluster.spec import AutoscalingSpec, ShardPlan


class ExpertScaler:
    """Asks for more or fewer replicas of each shard, between the bounds of the service file.

    Args:
        report: Notes an event.
    """

    def __init__(self, fleet: ExpertFleet, report: Report) -> None:
        self._fleet = fleet
        self._report = report
        self._meters: WeakKeyDictionary[ExpertKeeper, ExpertMeter] = WeakKeyDictionary()
        self._histories: dict[int, History] = {}

    def forget(self) -> None:
        """What was measured does not count any more: other shards, or a long pause."""
        self._histories.clear()

    async def scale(self, autoscaling: AutoscalingSpec) -> None:
        """Decides once for every shard and makes it so; returns when what leaves has left."""
        before = self._fleet.counts
        decisions = {shard.index: self._decide(shard, before[shard.index], autoscaling) for shard in self._shards}
        counts = {index: decision.num_replicas for index, decision in decisions.items()}
        self._fleet.grow(self._fleet.layout, counts)
        beyond = self._fleet.beyond(counts)
        moved = {index for index in counts if counts[index] > before[index]} | {one.shard.index for one in beyond}
        for index in sorted(moved):  # of what cannot be done yet, the next decision will say the same
            self._report(decisions[index].reason)
        hopeless = [keeper for shard in self._shards for keeper in self._hopeless(shard)]
        for keeper in hopeless:
            self._report(f"{keeper.name} cannot be had and is given up: {keeper.error}", failed=True)
        await asyncio.shield(self._fleet.retire({*beyond, *hopeless}))

    @property
    def _shards(self) -> tuple[ShardPlan, ...]:
        return self._fleet.layout.shards

    def _hopeless(self, shard: ShardPlan) -> list[ExpertKeeper]:
        """The further replicas that the load asked for, beyond the fewest allowed, and that do not come up."""
        keepers = self._fleet.keepers_of(shard.index)
        further = [keeper for keeper in keepers if keeper.replica]
        failing = [keeper for keeper in further if not keeper.served and keeper.num_failures >= NUM_TRIES]
        return failing[: max(0, len(keepers) - shard.replicas.min)]

    def _decide(self, shard: ShardPlan, count: int, autoscaling: AutoscalingSpec) -> Decision:
        rules = Rules(
            shard.replicas.min, shard.replicas.max, autoscaling.target_utilization, autoscaling.downscale_delay_s
        )
        loads = self._loads(shard)  # read in any case: the next reading is since this one
        history = self._histories.get(shard.index, ())
        decision = decide(f"shard {shard.index}", count, loads, rules, history, time.monotonic())
        self._histories[shard.index] = decision.history
        return decision

    def _loads(self, shard: ShardPlan) -> list[Load]:
        read = [
            self._meters.setdefault(keeper, ExpertMeter()).read(keeper.figures)
            for keeper in self._fleet.keepers_of(shard.index)
            if keeper.address is not None  # else the figures are those of a process that has ended
        ]
        return [load for load in read if load is not None]
