"""The controller: one named Ray actor that makes the service what its file says and publishes the routing table.

Nothing on the hot path asks it anything: while it is away, tokens flow on the last table.
"""

from typing import Any

import ray

from cluster.messages import News
from cluster.names import NAMESPACE, controller_name
from cluster.plain import pack
from cluster.resolve import Service

__all__ = ["Controller", "News", "controller_of", "start_controller"]  # News: `cluster.before`

# Each member waits in one call for news, and makes others meanwhile; Ray's default of 1000 calls at a time would let
# announcements wait behind long polls in a large service.
MAX_CALLS = 20_000
Record = dict[str, Any]  # plain data: `cluster.plain`


def start_controller(service: Service, take_over: bool = True) -> Any:
    """Returns the service's controller, which is started if there is none.

    Args:
        take_over: Whether one that runs already will do.

    Raises:
        ValueError: One runs already, and must not.
    """
    return controller_of(service.name, pack(service), take_over)


def controller_of(name: str, service: Record, take_over: bool = True) -> Any:
    """The same, of a service as plain data."""
    return Controller.options(
        name=controller_name(name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=take_over,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=MAX_CALLS,
    ).remote(name, service, fresh=not take_over)


@ray.remote
class Controller:
    """What other processes call; `cluster.control.Control` does it.

    Ray keeps this class itself, as it was when the service was started, and starts it again: after the package was
    replaced, this text still runs, and finds all else in the new package. So it holds no more than names, which stay.

    Args:
        name: Of the service.
        service: What to run, unless an earlier controller of this service has stored something else: plain data.
        fresh: Whether the service is just being started: what is stored is of an earlier one of the same name.
    """

    def __init__(self, name: str, service: Record, fresh: bool) -> None:
        from cluster.beginning import begin

        self._control = begin(name, service, fresh)

    async def news(self, known: tuple[int, int], timeout_s: float) -> Record:
        return await self._control.news(known, timeout_s)

    async def announce(self, member_id: str, said: Record) -> Any:
        return await self._control.announce(member_id, said)

    async def leave(self, member_id: str, snapshot: Record | None) -> None:
        await self._control.leave(member_id, snapshot)

    async def snapshots(self, member_id: str, own: Record) -> Any:
        return await self._control.snapshots(member_id, own)

    async def service(self) -> Record:
        return await self._control.service()

    async def apply(self, service: Record, seen_version: str) -> None:
        await self._control.apply(service, seen_version)

    async def note(self, text: str) -> None:
        await self._control.note(text)

    async def status(self) -> Record:
        return await self._control.status()

    async def stop(self) -> list[str]:
        return await self._control.stop()

    async def exit(self) -> None:
        """Leaves for good; Ray does not restart an actor that exits by itself."""
        ray.actor.exit_actor()  # pyright: ignore[reportAttributeAccessIssue]

    async def ask(self, question: str, *given: Any) -> Any:
        """Whatever a later Manta has to ask: a handle knows no other methods than those of its actor's beginning."""
        return await self._control.ask(question, *given)
