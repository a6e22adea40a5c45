"""The expert actors of a service: a keeper for each replica, more or fewer of them as asked."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Set
from typing import Any

import ray

from cluster.causes import cause_of
from cluster.keeper import ExpertKeeper, Report
from cluster.layout import Layout, core_for, layout_of
from cluster.names import NAMESPACE, experts_prefix, first_group_name, group_name
from cluster.placement import (
    Reservation,
    num_reserved,
    release,
    release_all,
    release_layout,
    reserve_first,
    reserve_further,
)
from cluster.resolve import Service
from cluster.secret import DataPlaneKeys
from cluster.spec import ShardPlan
from transport.address import Address

POLL_S = 0.05
NUM_TRIES = 2  # of a new replica, before whoever waits for it is told that it cannot be had
Counts = Mapping[int, int]  # replicas of each shard, by the shard's index


class ExpertFleet:
    """Keeps every replica of every shard of the service's layout, and starts or retires replicas.

    While a layout is exchanged for another one, both have replicas; routers are told of one at a time.

    Replica 0 of each shard stays for as long as its layout does, alive or being replaced: its place is reserved
    together with the other shards', and cannot be given back alone.

    Args:
        report: Notes an event.
        publish: Makes a change of `in_use` known.
    """

    def __init__(self, service: Service, report: Report, publish: Callable[[], Awaitable[None]]) -> None:
        self._service = service
        self._layout = layout_of(service)
        self._report = report
        self._publish = publish
        self._keepers: list[ExpertKeeper] = []
        self._running: dict[ExpertKeeper, asyncio.Task[None]] = {}
        self._placing = asyncio.Lock()

    @property
    def layout(self) -> Layout:
        """The layout that routers use."""
        return self._layout

    @property
    def counts(self) -> dict[int, int]:
        """How many replicas each shard of the layout in use has, those that leave not counted."""
        found = Counter(keeper.shard.index for keeper in self.replicas_of(self._layout))
        return {shard.index: found[shard.index] for shard in self._layout.shards}

    @property
    def num_keepers(self) -> int:
        return len(self._keepers)

    def replicas_of(self, layout: Layout) -> list[ExpertKeeper]:
        """The replicas of a layout, those that leave not counted."""
        return [keeper for keeper in self._all_of(layout) if not keeper.leaving]

    def keepers_of(self, shard: int) -> list[ExpertKeeper]:
        """The replicas of one shard of the layout in use, those that leave not counted."""
        return [keeper for keeper in self.replicas_of(self._layout) if keeper.shard.index == shard]

    @property
    def complete(self) -> bool:
        """Whether each shard of the layout in use has a replica that serves."""
        serving = {keeper.shard.index for keeper in self.replicas_of(self._layout) if keeper.address is not None}
        return len(serving) == len(self._layout.shards)

    def needed_beside(self, layout: Layout, added: Collection[ExpertKeeper]) -> list[ExpertKeeper]:
        """Which other replicas each shard of a layout needs to have the fewest that it may: the best of them.

        Not all: one that the load has asked for, and that there is no room for, is nobody's to wait for.
        """
        found: list[ExpertKeeper] = []
        for shard in layout.shards:
            keepers = [keeper for keeper in self.replicas_of(layout) if keeper.shard.index == shard.index]
            others = sorted((keeper for keeper in keepers if keeper not in added), key=lambda one: not one.served)
            found += others[: max(0, shard.replicas.min - (len(keepers) - len(others)))]
        return found

    def in_use(self) -> list[tuple[ShardPlan, Address | None]]:
        """What routers are to know: each replica's shard, and where it listens (None: it does not serve at present)."""
        return [(keeper.shard, keeper.address) for keeper in self.replicas_of(self._layout)]

    def status(self) -> list[dict[str, object]]:
        """Returns what `manta status` shows of the experts."""
        # While layouts are exchanged there are two; their shards have the same numbers and hold other experts.
        shards: dict[tuple[str, int], list[ExpertKeeper]] = {}
        for keeper in self._keepers:
            shards.setdefault((keeper.layout.version, keeper.shard.index), []).append(keeper)
        return [
            {
                "shard": index,
                "experts": list(keepers[0].shard.expert_ids),
                "slice": keepers[0].shard.slice_index,
                "num_slices": keepers[0].shard.num_slices,
                "replicas": [keeper.status() for keeper in keepers],
            }
            for (_, index), keepers in sorted(shards.items(), key=lambda item: item[0])
        ]

    def take_service(self, service: Service) -> None:
        """Goes on with a changed service; what it asks for otherwise is started and retired by the other methods."""
        self._service = service
        if layout_of(service).version == self._layout.version:
            self._layout = layout_of(service)
            for keeper in self.replicas_of(self._layout):
                keeper.take_service(service)

    async def adopt(self) -> int:
        """Takes over what an earlier controller has started of this layout; returns how many replicas serve."""
        known = {(keeper.shard.index, keeper.replica) for keeper in self._all_of(self._layout)}
        found = sorted(_running_replicas(self._service.name, self._layout.version) - known)
        for shard, replica in found:
            self._add(self._layout, self._layout.shards[shard], replica)
        return sum(await asyncio.gather(*(keeper.adopt() for keeper in self._keepers)))

    @property
    def others_run(self) -> bool:
        """Whether expert actors of another layout run, and no replica of the layout in use serves.

        So it is where another Manta has started them: routers use those until this layout's are loaded beside them.
        """
        ours = f"{experts_prefix(self._service.name)}{self._layout.version}/"
        others = (name for name in expert_actors(self._service.name) if not name.startswith(ours))
        return all(keeper.address is None for keeper in self.replicas_of(self._layout)) and any(others)

    def grow(self, layout: Layout, counts: Counts) -> list[ExpertKeeper]:
        """Starts replicas until each shard of `layout` has as many as `counts` says; returns the new ones.

        Replica 0 is among them if there is none, even where an earlier controller's others are as many already.
        """
        new: list[tuple[ShardPlan, int]] = []
        for shard in layout.shards:
            taken = {keeper.replica for keeper in self._all_of(layout) if keeper.shard.index == shard.index}
            present = [keeper for keeper in self.replicas_of(layout) if keeper.shard.index == shard.index]
            for _ in range(max(counts[shard.index] - len(present), int(0 not in taken))):
                replica = next(number for number in range(len(taken) + 1) if number not in taken)
                taken.add(replica)
                new.append((shard, replica))
        added = [self._add(layout, shard, replica) for shard, replica in new]
        self._start()
        return added

    async def wait_serving(
        self, keepers: Iterable[ExpertKeeper], timeout_s: float, on_progress: Callable[[int], None] = lambda done: None
    ) -> None:
        """Waits until each of them has served.

        Raises:
            RuntimeError: One cannot be placed or loaded; says why.
            TimeoutError: They take too long; says which.
        """
        wanted, deadline_s = list(keepers), time.monotonic() + timeout_s
        while waiting := [keeper for keeper in wanted if not keeper.served]:
            on_progress(len(wanted) - len(waiting))
            for keeper in waiting:
                if keeper.num_failures >= NUM_TRIES:
                    raise RuntimeError(f"{keeper.name} does not come up: {keeper.error}")
            if time.monotonic() > deadline_s:
                states = ", ".join(f"{keeper.name} is {keeper.status()['state']}" for keeper in waiting)
                error = next((f" ({keeper.error})" for keeper in waiting if keeper.error), "")
                raise TimeoutError(f"not within {timeout_s:g} s (limits.load_timeout_s): {states}{error}")
            await asyncio.sleep(POLL_S)
        on_progress(len(wanted))

    def beyond(self, counts: Counts) -> list[ExpertKeeper]:
        """Which replicas of the layout in use are more than `counts` says: those that do not serve, then the latest.

        Never replica 0; until that serves again, nor the last one that serves.
        """
        found: list[ExpertKeeper] = []
        for shard in self._layout.shards:
            keepers = self.keepers_of(shard.index)
            further = sorted(
                (one for one in keepers if one.replica), key=lambda one: (one.address is not None, -one.replica)
            )
            first_serves = any(one.address is not None for one in keepers if not one.replica)
            if not first_serves and further and further[-1].address is not None:
                further.pop()
            found += further[: max(0, len(keepers) - counts[shard.index])]
        return found

    async def use(self, layout: Layout) -> list[ExpertKeeper]:
        """Tells routers to use `layout` from now on; returns the replicas of all others that do not leave yet."""
        self._layout = layout
        await self._publish()
        others = [keeper for keeper in self._keepers if keeper.layout.version != layout.version]
        return [keeper for keeper in others if not keeper.leaving]

    async def retire(self, keepers: Iterable[ExpertKeeper]) -> None:
        """Ends replicas: routers are told first, and send what is not answered by then elsewhere. Never raises."""
        leaving = [keeper for keeper in keepers if not keeper.leaving]
        for keeper in leaving:
            keeper.leaving = True
        if leaving:
            await self._publish()
        results = await asyncio.gather(*(self._retire(keeper) for keeper in leaving), return_exceptions=True)
        for keeper, result in zip(leaving, results, strict=True):
            if isinstance(result, Exception):
                self._report(f"{keeper.name} did not leave as it should: {cause_of(result)}", failed=True)

    async def set_keys(self, keys: DataPlaneKeys) -> list[str]:
        """Gives every replica that serves the data-plane keys of now; returns who serves and did not take them."""
        serving = [keeper for keeper in self._keepers if keeper.address is not None]
        results = await asyncio.gather(*(keeper.set_keys(keys) for keeper in serving), return_exceptions=True)
        failed = [keeper.name for keeper, result in zip(serving, results, strict=True) if result is not None]
        return [name for name in failed if any(one.name == name and one.address is not None for one in self._keepers)]

    async def stop(self) -> None:
        """Ends every replica at once."""
        await asyncio.gather(*(self._end(keeper) for keeper in list(self._keepers)))

    def sweep(self) -> None:
        """Ends what runs or is reserved under this service's name and belongs to no replica here."""
        kill_experts(self._service.name, {keeper.name for keeper in self._keepers})
        name, layouts = self._service.name, {keeper.layout.version for keeper in self._keepers}
        kept = {first_group_name(name, version) for version in layouts}
        kept |= {_group_of(name, keeper) for keeper in self._keepers}
        release_all(name, kept)

    def _all_of(self, layout: Layout) -> list[ExpertKeeper]:
        return [keeper for keeper in self._keepers if keeper.layout.version == layout.version]

    def _start(self) -> None:
        for keeper in self._keepers:
            if keeper not in self._running and not keeper.leaving:
                self._running[keeper] = asyncio.get_running_loop().create_task(keeper.run())

    def _core_on(self, keeper: ExpertKeeper, host: str, num_cores: int) -> int | None:
        """Returns the core that a replica is pinned to on its host: no other's of its layout, if that can be."""
        experts = self._service.spec.experts
        if keeper.shard.num_gpus or experts.pin_cores is False:
            return None
        there = [each for each in self._all_of(keeper.layout) if each.host == host and each is not keeper]
        staying = [each.core for each in there if not each.leaving]
        # Those that are still on their way count too, or the first would be pinned and the last would find no core.
        num_replicas = num_reserved(self._service.name, keeper.layout.version, host) - (len(there) - len(staying))
        return core_for(staying, max(num_replicas, len(staying) + 1), experts.pin_cores, num_cores)

    def _add(self, layout: Layout, shard: ShardPlan, replica: int) -> ExpertKeeper:
        keeper: ExpertKeeper = ExpertKeeper(
            self._service,
            layout,
            shard,
            replica,
            lambda: self._reserve(layout, shard, replica),
            lambda host, num_cores: self._core_on(keeper, host, num_cores),
            self._report,
            self._publish,
        )
        self._keepers.append(keeper)
        return keeper

    async def _reserve(self, layout: Layout, shard: ShardPlan, replica: int) -> Reservation:
        if replica == 0:
            return await reserve_first(self._service, layout, shard)
        return await reserve_further(self._service, layout, shard, replica, self._placing)

    async def _retire(self, keeper: ExpertKeeper) -> None:
        await keeper.drain()
        await self._end(keeper)
        if not self._all_of(keeper.layout):
            release_layout(self._service.name, keeper.layout.version)

    async def _end(self, keeper: ExpertKeeper) -> None:
        task = self._running.pop(keeper, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        keeper.stop()
        if keeper in self._keepers:
            self._keepers.remove(keeper)
        if keeper.replica:
            release(_group_of(self._service.name, keeper), keeper.reservation)


def _group_of(service: str, keeper: ExpertKeeper) -> str:
    return group_name(service, keeper.layout.version, keeper.shard.index, keeper.replica)


def kill_experts(service: str, spared: Set[str] = frozenset()) -> None:
    """Ends the expert actors of a service, but for those of the names `spared`."""
    for name in set(expert_actors(service)) - spared:
        try:
            ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
        except ValueError:
            continue  # it has just gone


def expert_actors(service: str) -> list[str]:
    """Returns the names of the expert actors of a service that run."""
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    names = (actor["name"] for actor in found if actor["namespace"] == NAMESPACE)
    return [name for name in names if name.startswith(experts_prefix(service))]


def _running_replicas(service: str, layout: str) -> set[tuple[int, int]]:
    """Returns (shard, replica) of every actor of a layout that runs."""
    prefix = f"{experts_prefix(service)}{layout}/"
    numbers = (name.removeprefix(prefix).split("/") for name in expert_actors(service) if name.startswith(prefix))
    return {(int(shard), int(replica)) for shard, replica in numbers}
