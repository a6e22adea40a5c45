"""What a controller keeps for the one that is started after it: read once as it begins, written when it changes."""

import asyncio
from typing import Any

from cluster.before import hold
from cluster.events import Events
from cluster.members import Known
from cluster.plain import unpack
from cluster.resolve import Service
from cluster.stored import (
    forget_service,
    next_epoch,
    store_beat,
    store_epoch,
    store_events,
    store_failure,
    store_known,
    store_service,
    stored_events,
    stored_failure,
    stored_known,
    stored_service,
)


class Ledger:
    """Of one service: what it is and is to become, who takes part, and what has happened.

    What it is is written at once: a controller that Ray restarts is given its first arguments, which may have been
    overtaken by then.

    Attributes:
        epoch: The controller's place among all of the service's: its tables come after those of the ones before.
        found: Whether an earlier controller has left a service.
        good: What was completely there last.
        accepted: What is to be made; `good`, if no change is under way.
        failure: Why going back after a change has failed; empty: it has not.
        known: Who takes part; at first, as an earlier controller has left it.
        events: The last events, the latest ones of an earlier controller among them.

    Args:
        record: What it is, if nothing is stored: a Service, packed.
        fresh: Whether what is stored is of an earlier service of the same name, and is to be forgotten.

    Raises:
        FormatError: What is stored (or `record`) is of another Manta, and cannot be read. Nothing was written.
    """

    def __new__(cls, *given: Any, **named: Any) -> "Ledger":
        if given and not isinstance(given[0], str):  # the service itself, as controllers of before gave it
            hold(str(given[0].spec.name))
        return super().__new__(cls)

    def __init__(self, name: str, record: dict[str, Any], fresh: bool) -> None:
        self._name = name
        good = None if fresh else stored_service(name, "good")
        accepted = None if good is None else stored_service(name, "accepted")
        service = unpack(Service, record, f"service {name}") if good is None else good
        self.epoch = next_epoch(name)
        if good is None:  # what else there is was left by one that could not forget all of it
            forget_service(self._name)
        store_epoch(self._name, self.epoch)
        self.found = good is not None
        self.good = service
        self.accepted = accepted or service
        self.failure = stored_failure(self._name)
        self.known = stored_known(self._name)
        self.events = Events(stored_events(self._name))
        self._written, self._writing = self.known, asyncio.Lock()
        self._closed = False
        self._write_services()

    @property
    def has_uncommitted(self) -> bool:
        """Whether what was accepted is another version than what was completely there last."""
        return self.accepted.version != self.good.version

    @property
    def goal(self) -> str:
        """What a controller is to make as it is restarted, in words."""
        good, accepted = self.good.version, self.accepted.version
        if self.has_uncommitted:
            return f"the service was being changed from version {good} to {accepted}"
        return f"the service is to be version {good}"

    def accept(self, service: Service) -> None:
        """Notes what is to be made now."""
        if not self._closed:
            store_service(service, "accepted")
        self.accepted = service

    def commit(self) -> None:
        """Notes that what was accepted is there: the next controller does not go back behind it.

        An earlier failure to go back is over, too: Serve has what was accepted.
        """
        if not self._closed:
            store_service(self.accepted, "good")
            store_failure(self._name, "")
        self.good, self.failure = self.accepted, ""

    def end_change(self, failure: str) -> None:
        """Notes that no change is under way any more; `failure` says why going back has failed, if it has."""
        self.accepted, self.failure = self.good, failure
        if not self._closed:
            store_failure(self._name, failure)  # first: without it, the next one would trust what Serve has
            self._write_services()

    async def keep_known(self, known: Known) -> None:
        """Writes who takes part, if it has changed. One at a time, so that the latest is what stays."""
        self.known = known
        # A caller that is cancelled leaves its write to end by itself: the next one, and `forget`, wait for it.
        await asyncio.shield(self._write_known())

    async def keep_beat(self, num_heard: int) -> None:
        """Writes how many announcements this controller has heard."""
        async with self._writing:
            if not self._closed:
                await asyncio.to_thread(store_beat, self._name, f"{self.epoch}/{num_heard}")

    def keep_events(self) -> None:
        """Writes the last events, if there are new ones. Called once in a while: a burst of them is one write."""
        if self.events.take_changed() and not self._closed:
            store_events(self._name, self.events.latest())

    def close(self) -> None:
        """From now on no write begins: whoever ends the service forgets all of it, at any time."""
        self._closed = True

    async def forget(self) -> None:
        """Closes it, and forgets everything once a write that is under way has ended."""
        self.close()
        async with self._writing:
            forget_service(self._name)

    async def _write_known(self) -> None:
        async with self._writing:
            latest = self.known  # perhaps newer by now: of those that waited for a slow write, one writes
            if latest != self._written and not self._closed:
                await asyncio.to_thread(store_known, self._name, latest)
                self._written = latest

    def _write_services(self) -> None:
        store_service(self.good, "good")
        store_service(self.accepted, "accepted")
