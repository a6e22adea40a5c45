"""Watches over a service's members: lets go of the silent, ends those that hang, and sees when nobody is left."""

import asyncio
import logging
import time

import ray
from ray.exceptions import RayError

from cluster.application import SERVE_ANSWERS_S, wanted_by_serve
from cluster.causes import cause_of
from cluster.keeper import Report
from cluster.members import ANNOUNCE_INTERVAL_S, Announcement, Members
from cluster.names import SERVE_NAMESPACE
from cluster.spec import LimitsSpec

logger = logging.getLogger(__name__)

TICK_S = 1.0
# A stopped service's controller waits so long to be told to leave, in case that who has stopped it is gone: Serve takes
# seconds to delete an application, and parts of it that are just starting go on meanwhile.
STOPPED_S = 30.0


class MemberWatch:
    """`drop_silent`, `end_hung` and `is_over` are called in this order, once every TICK_S from `begin` on.

    Args:
        service: The name of the service.
        members: Heard of elsewhere, dropped here.
        report: Notes an event.
    """

    def __init__(self, service: str, members: Members, report: Report) -> None:
        self._service = service
        self._members = members
        self._report = report
        self._looked_s = 0.0
        self._to_end: list[Announcement] = []
        self._joined = self._stays = self._stopping = False
        self._alone_s = 0.0

    def begin(self) -> None:
        """Begins, or goes on after a while without these calls in which members were heard all the same."""
        self._looked_s = time.monotonic()

    def stop(self) -> None:
        """From now on the service is being stopped.

        However long nobody was there, it is waited anew: a part that is just starting would start a controller of its
        own if there were none that says "stopping".
        """
        self._stopping, self._alone_s = True, 0.0

    def drop_silent(self, limits: LimitsSpec) -> bool:
        """Lets go of members that have fallen silent. Returns whether there were any."""
        now_s = time.monotonic()
        late_s, self._looked_s = now_s - self._looked_s - TICK_S, now_s
        if late_s > TICK_S:  # this process was suspended, and perhaps all others with it
            self._members.forgive(late_s)
        silent = self._members.drop_silent(now_s, _silence_s(limits))
        for said in silent:
            self._report(f"{said.role} {said.pid} has fallen silent", failed=True)
        return bool(silent)

    def end_hung(self, limits: LimitsSpec) -> bool:
        """Kills members that stay silent, again and again if need be. Returns whether there are new ones."""
        # As of the last look, not of now: a pause of this process since then is yet to be forgiven.
        hung = self._members.take_hung(self._looked_s, _silence_s(limits))
        self._to_end = [said for said in (*self._to_end, *hung) if not self._ended(said)]
        return bool(hung)

    async def is_over(self, limits: LimitsSpec) -> bool:
        """Returns whether nobody has been there for too long, and nobody is to come."""
        self._alone_s = 0.0 if self._members else self._alone_s + TICK_S
        if self._members:
            self._joined, self._stays = True, False
        if self._alone_s <= self._patience_s(limits):
            return False
        if self._stopping:
            return True
        wanted = await self._is_wanted()
        if self._stopping:  # since it has asked
            return False
        if not wanted:
            logger.warning("no gateway, node or router for %g s: the service is over", self._alone_s)
            return True
        if not self._stays:  # said once, asked again and again
            waits = "staying, as Serve has the application, or does not answer"
            self._report(f"no gateway, node or router for {self._alone_s:g} s; {waits}")
        self._alone_s, self._stays = 0.0, True
        return False

    def _patience_s(self, limits: LimitsSpec) -> float:
        """How long it stays without any member: a service that has just been started (or found again) has none."""
        if self._stopping:
            return STOPPED_S
        return limits.orphan_timeout_s if self._joined else max(limits.orphan_timeout_s, limits.load_timeout_s)

    async def _is_wanted(self) -> bool:
        """Whether parts may come back: a member has, or Serve starts some as soon as it can."""
        try:
            asked = asyncio.to_thread(wanted_by_serve, self._service)
            return await asyncio.wait_for(asked, SERVE_ANSWERS_S) or bool(self._members)
        except (RayError, TimeoutError):  # it is being started again, or hangs: what it has, it keeps
            return True

    def _ended(self, said: Announcement) -> bool:
        """Kills a process, for Serve to start another one. Returns whether it is gone."""
        try:
            ray.kill(ray.get_actor(said.actor, SERVE_NAMESPACE), no_restart=True)
        except ValueError:
            return True  # as most are by now
        except RayError as error:
            logger.warning("%s %s hangs, and could not be ended; tried again: %s", said.role, said.pid, cause_of(error))
            return False
        self._report(f"{said.role} {said.pid} hangs; it is replaced", failed=True)
        return True


def _silence_s(limits: LimitsSpec) -> float:
    """How long a member may be silent."""
    return limits.heartbeat_timeout_s + ANNOUNCE_INTERVAL_S
