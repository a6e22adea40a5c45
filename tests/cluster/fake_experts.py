"""Stands in for the replicas of a fleet: no Ray, no processes."""

import asyncio

from cluster.fleet import ExpertFleet
from cluster.layout import Layout
from cluster.resolve import Service
from cluster.spec import ShardPlan
from transport.address import Address


class FakeKeeper:
    """A replica that serves at once, if there is room for it: there is room for the first of each shard."""

    def __init__(self, service: Service, layout: Layout, shard: ShardPlan, replica: int, *rest: object) -> None:
        self.layout, self.shard, self.replica = layout, shard, replica
        self.name = f"shard {shard.index}, replica {replica}"
        self.core = self.reservation = None
        self.leaving = False
        self.served = replica == 0
        self.address: Address | None = Address("host", "1", "", 0) if self.served else None
        self.num_failures = 0
        self.error = "" if self.served else "no room"
        self.figures: dict[str, object] = {}
        self.num_runs = 0

    async def run(self) -> None:
        self.num_runs += 1
        await asyncio.Event().wait()

    async def adopt(self) -> bool:
        return self.served

    async def drain(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def take_service(self, service: Service) -> None:
        pass

    def status(self) -> dict[str, object]:
        return {"state": "placing"}


async def published() -> None:
    pass


def fleet_of(service: Service) -> ExpertFleet:
    return ExpertFleet(service, lambda *given, **more: None, published)
