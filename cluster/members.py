"""Who takes part in the service: gateways, nodes and routers, as they announce themselves. Pure; time is given."""

from collections.abc import ItemsView
from dataclasses import dataclass

from transport.address import Address
from transport.membership import Role, Snapshot

# Announcements come once a second. A member that misses several is gone or hangs; its peers have noticed a closed
# connection long before, so this only cleans up.
SILENT_AFTER_S = 6.0


@dataclass
class Member:
    """One process and what it last said."""

    role: Role
    address: Address | None
    pid: int
    snapshot: Snapshot
    heard_s: float


class Members:
    """The processes that announced themselves, by their own ids."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def items(self) -> ItemsView[str, Member]:
        return self._members.items()

    def heard(
        self, member_id: str, role: Role, address: Address | None, pid: int, snapshot: Snapshot, now_s: float
    ) -> bool:
        """Notes an announcement; returns whether the member is new."""
        new = member_id not in self._members
        self._members[member_id] = Member(role, address, pid, snapshot, now_s)
        return new

    def remove(self, member_id: str) -> Member | None:
        """Forgets a member."""
        return self._members.pop(member_id, None)

    def drop_silent(self, now_s: float) -> list[Member]:
        """Forgets the members that have not been heard for SILENT_AFTER_S; returns them."""
        silent = [key for key, member in self._members.items() if now_s - member.heard_s > SILENT_AFTER_S]
        return [self._members.pop(key) for key in silent]

    def addresses(self, role: Role) -> tuple[Address, ...]:
        """Returns where the members of one role listen."""
        return tuple(
            member.address for member in self._members.values() if member.role == role and member.address is not None
        )

    def status(self, role: Role) -> list[dict[str, object]]:
        """Returns what `manta status` shows of the members of one role."""
        return [
            {
                "pid": member.pid,
                "address": str(member.address) if member.address is not None else None,
                **{key: value for key, value in member.snapshot.items() if isinstance(value, int | float | str | list)},
            }
            for member in self._members.values()
            if member.role == role
        ]
