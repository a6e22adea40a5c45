"""Who takes part in the service: gateways, nodes and routers, as they announce themselves. Pure; time is given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.counts import Counts, counts_of, sum_of
from transport.address import Address
from transport.membership import Role, Snapshot

ANNOUNCE_INTERVAL_S = 1.0  # how often members announce themselves
MAX_REMEMBERED = 64  # of those that left, and of those that hang: what they may still say comes within seconds


@dataclass(frozen=True)
class Announcement:
    """What one process says of itself.

    Args:
        address: Where it listens; None: it accepts no connections.
        host: The Ray node it runs on.
        app: The Serve application it belongs to.
        actor: The name of its Ray actor, in Serve's namespace.
        snapshot: Figures for status and metrics.
        keys_generation: Of the data-plane keys that it has.
    """

    role: Role
    address: Address | None
    pid: int
    host: str
    app: str
    actor: str
    snapshot: Snapshot
    keys_generation: int = 0


@dataclass(frozen=True)
class Known:
    """What a controller leaves to the one that is started after it.

    Args:
        said: What each member last said, by its id.
        gone: What those that are gone had counted.
        hung: What those that were taken for hung last said, by their ids.
        left: The ids of those that left.
    """

    said: Mapping[str, Announcement] = field(default_factory=dict[str, Announcement])
    gone: Counts = field(default_factory=dict[Role, Snapshot])
    hung: Mapping[str, Announcement] = field(default_factory=dict[str, Announcement])
    left: tuple[str, ...] = ()


NOBODY = Known()


@dataclass
class _Member:
    said: Announcement
    heard_s: float


class Members:
    """The processes that announced themselves, by their own ids.

    A member that is silent is dropped: its peers are to let go of it. If it is heard again, it is a member again; if it
    stays silent for as long once more, it hangs for good. What it had counted stays among the counts: sums that fell
    would look as if everything had begun anew. Nothing is counted twice: one that was taken for hung and is heard yet
    is a member again, and what arrives of one after it has left is ignored.

    Args:
        known: By an earlier controller: its members are silent until they are heard. Their peers keep them as long as
            any other member that falls silent: a table without those that are slow to be heard would cut connections
            that are in use.
        heard_s: When those count as heard for the last time.
    """

    def __init__(self, known: Known = NOBODY, heard_s: float = 0.0) -> None:
        self._members: dict[str, _Member] = {}
        self._silent = {member_id: _Member(said, heard_s) for member_id, said in known.said.items()}
        self._unheard = set(self._silent)
        self._awaited = {key for key, member in self._silent.items() if member.said.role != "router"}
        self._gone = known.gone
        self._hung = {member_id: _Member(said, heard_s) for member_id, said in known.hung.items()}
        self._left = dict.fromkeys(known.left)

    def __bool__(self) -> bool:
        return bool(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def heard(self, member_id: str, said: Announcement, now_s: float) -> bool:
        """Notes an announcement; returns whether the member is new."""
        if member_id in self._left:
            return False
        new = member_id not in self._members
        self._silent.pop(member_id, None)
        self._unheard.discard(member_id)
        self._hung.pop(member_id, None)
        self._awaited.discard(member_id)
        self._members[member_id] = _Member(said, now_s)
        return new

    def lives(self, member_id: str, now_s: float) -> None:
        """Notes that one is there whose words are not understood: what it said last holds on, and it does not hang."""
        member = self._members.get(member_id) or self._silent.get(member_id)
        if member is not None:
            member.heard_s = now_s

    def remove(self, member_id: str) -> Announcement | None:
        """Forgets a member but for what it has counted; returns what it last said."""
        member = next((part.pop(member_id) for part in self._parts if member_id in part), None)
        self._unheard.discard(member_id)
        self._awaited.discard(member_id)
        self._left[member_id] = None
        _oldest_beyond(self._left)
        self._keep_counts(() if member is None else (member,))
        return None if member is None else member.said

    def drop_silent(self, now_s: float, timeout_s: float) -> list[Announcement]:
        """Drops the members that have not been heard for `timeout_s`; returns what they last said."""
        silent = [key for key, member in self._members.items() if now_s - member.heard_s > timeout_s]
        self._silent.update({key: self._members.pop(key) for key in silent})
        silent += [key for key in self._unheard if now_s - self._silent[key].heard_s > timeout_s]
        self._unheard.difference_update(silent)
        return [self._silent[key].said for key in silent]

    def take_hung(self, now_s: float, timeout_s: float) -> list[Announcement]:
        """Gives up those that have been silent for twice as long; returns what they last said."""
        hung = {key: member for key, member in self._silent.items() if now_s - member.heard_s > 2 * timeout_s}
        for key in hung:
            del self._silent[key]
        self._unheard.difference_update(hung)
        self._awaited.difference_update(hung)
        self._hung.update(hung)
        self._keep_counts(_oldest_beyond(self._hung))
        return [member.said for member in hung.values()]

    def forgive(self, pause_s: float) -> None:
        """Does not hold `pause_s` against anybody: nobody listened for so long."""
        for member in (*self._members.values(), *self._silent.values()):
            member.heard_s += pause_s

    def addresses(self, role: Role) -> tuple[Address, ...]:
        """Returns where the members of one role listen; those too that only an earlier controller has heard so far."""
        return tuple(one.address for one in self._kept() if one.role == role and one.address is not None)

    def behind(self, generation: int) -> list[str]:
        """Returns, in words, who does not have the data-plane keys of a generation yet."""
        return [f"{said.role} {said.pid}" for said in self._kept() if said.keys_generation < generation]

    def _kept(self) -> list[Announcement]:
        """Returns what those last said whom peers are to keep: heard, or only heard by an earlier controller."""
        unheard = (self._silent[key] for key in self._unheard)
        return [member.said for member in (*self._members.values(), *unheard)]

    @property
    def apps(self) -> tuple[str, ...]:
        """The Serve applications that the members belong to, the silent ones too."""
        return tuple(sorted({member.said.app for member in (*self._members.values(), *self._silent.values())}))

    def tell(self, member_id: str, snapshot: Snapshot) -> None:
        """Notes the present figures of one that is known, between two announcements; silent or not."""
        member = next((part[member_id] for part in self._parts if member_id in part), None)
        if member is not None:
            member.said = replace(member.said, snapshot=snapshot)

    @property
    def complete(self) -> bool:
        """Whether every gateway and node that an earlier controller knew has been heard, or is gone."""
        return not self._awaited

    @property
    def known(self) -> Known:
        """What a later controller is to know."""
        return Known(_said({**self._members, **self._silent}), self._gone, _said(self._hung), tuple(self._left))

    def snapshots(self, except_id: str) -> list[tuple[Role, Snapshot]]:
        """Returns the last snapshot of every gateway and node but one, and the counts of those that are not heard."""
        living: list[tuple[Role, Snapshot]] = [
            (member.said.role, member.said.snapshot)
            for member_id, member in self._members.items()
            if member_id != except_id and member.said.role != "router"
        ]
        others = {**self._silent, **self._hung}
        others.pop(except_id, None)
        return [*living, *sum_of((self._gone, *_counts(others.values()))).items()]

    @property
    def _parts(self) -> tuple[dict[str, _Member], ...]:
        return self._members, self._silent, self._hung

    def _keep_counts(self, forgotten: Iterable[_Member]) -> None:
        self._gone = sum_of((self._gone, *_counts(forgotten)))

    def status(self, role: Role) -> list[dict[str, object]]:
        """Returns what `manta status` shows of the members of one role."""
        said = [member.said for member in self._members.values() if member.said.role == role]
        return [_status_of(one) for one in said]


def _oldest_beyond(remembered: dict[str, Any]) -> list[Any]:
    """Takes out what is too much to be remembered, the oldest first."""
    oldest = list(remembered)[: max(0, len(remembered) - MAX_REMEMBERED)]
    return [remembered.pop(key) for key in oldest]


def _said(members: Mapping[str, _Member]) -> dict[str, Announcement]:
    return {member_id: member.said for member_id, member in members.items()}


def _counts(members: Iterable[_Member]) -> Iterable[Counts]:
    return (counts_of(member.said.role, member.said.snapshot) for member in members)


def _status_of(said: Announcement) -> dict[str, object]:
    figures = {key: value for key, value in said.snapshot.items() if isinstance(value, int | float | str | list)}
    used, total = figures.get("cache_used_tokens"), figures.get("cache_total_tokens")
    if isinstance(used, int) and isinstance(total, int):
        figures["cache_used"] = round(used / max(total, 1), 4)
    address = None if said.address is None else str(said.address)
    return {"pid": said.pid, "host": said.host, "address": address, **figures}
