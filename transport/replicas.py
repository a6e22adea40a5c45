"""Replica choice and failover: a call goes to its group's least loaded replica (of equally loaded ones to any), and to
another one if that is lost."""

import functools
import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.address import Address
from transport.base import Answer, OnReply, Peer
from transport.errors import CallError, PeerLost
from transport.loop import Timer
from transport.tries import NO_TRIES, Tries

CallLater = Callable[[float, Callable[[], None]], Timer]
# Groups of other names take over once each has a replica that is ready. After so long they do in any case, and earlier
# where calls would not wait for so long.
CHANGE_OVER_TIMEOUT_S = 10.0
# Before a third replica gets them: those that die with the second (all of one host) have been noticed by then.
PAUSE_S = 1.0


def _nothing() -> None:
    """What a change of groups means to whoever does not care."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """Something that cannot be done until a replica comes back."""

    awaited: str
    possible: Callable[[], bool]
    then: Callable[[], None]
    on_failure: Callable[[CallError], None]
    timer: Timer


class Replicas:
    """Groups of interchangeable peers (the replicas of each shard; all routers), kept as the routing table says.

    A call whose peer is lost is sent again to another one of its group; while the group has none, the call waits. One
    that has cost too many peers (`transport.tries`) fails with `internal`.

    Args:
        connect: Makes the peer of an address; it must call `retry_waiting` whenever that peer becomes ready.
        call_later: Schedules a callback after a delay in seconds (`Loop.call_later`).
        recovery_timeout_s: How long a call waits for its group to have a replica again
            (`limits.recovery_timeout_s`); then it fails with `expert_unavailable`.
    """

    def __init__(self, connect: Callable[[Address], Peer], call_later: CallLater, recovery_timeout_s: float) -> None:
        self._connect = connect
        self._call_later = call_later
        self._recovery_timeout_s = recovery_timeout_s
        self._peers: dict[Address, Peer] = {}
        self._groups: dict[Hashable, tuple[Address, ...]] = {}
        # Bounded by the calls under way: a node has one, a router those of its nodes' calls. Each waits for at most
        # `recovery_timeout_s`; the timers of those that do not wait any more go when they are due, as others do.
        self._waiting: list[_Waiting] = []
        self._next: tuple[Mapping[Hashable, tuple[Address, ...]], Callable[[], None]] | None = None
        self._change_over_timer: Timer | None = None

    def update(
        self, groups: Mapping[Hashable, tuple[Address, ...]], on_change_over: Callable[[], None] = _nothing
    ) -> None:
        """Connects to replicas that appeared and lets go of those that left.

        Where the groups themselves are others than before, the present ones are used until the new ones are ready.

        Args:
            on_change_over: Called when the new groups are used, before calls of the old ones are given back.
        """
        if self._change_over_timer is not None:
            self._change_over_timer.cancel()
        self._next = groups, on_change_over
        for address in _addresses(groups) - self._peers.keys():
            self._peers[address] = self._connect(address)
        if not self._groups or not groups or groups.keys() == self._groups.keys():
            self._change_over()
        else:
            self._change_over_timer = self._call_later(
                min(CHANGE_OVER_TIMEOUT_S, self._recovery_timeout_s / 2), self._change_over
            )
            self._change_over_if_ready()

    def _change_over_if_ready(self) -> None:
        if self._next is not None and all(self._choose_of(addresses) for addresses in self._next[0].values()):
            self._change_over()

    def _change_over(self) -> None:
        if self._next is None:
            return
        # The new groups are in place before the old peers close: calls that a closing peer gives back find them.
        (groups, on_change_over), self._next = self._next, None
        if self._change_over_timer is not None:
            self._change_over_timer.cancel()
        self._groups = dict(groups)
        on_change_over()
        gone = [self._peers.pop(address) for address in self._peers.keys() - _addresses(groups)]
        for peer in gone:
            peer.close()
        self.retry_waiting()

    @property
    def changing(self) -> bool:
        """Whether other groups are about to take over."""
        return self._next is not None

    @property
    def complete(self) -> bool:
        """Whether there are groups, and each has a replica that is ready."""
        return bool(self._groups) and all(map(self.has_ready, self._groups))

    def has_ready(self, group: Hashable) -> bool:
        """Whether `group` has a replica that is ready."""
        return self._choose(group) is not None

    def call(
        self,
        group: Hashable,
        header: Header,
        rows_TD: Tensor,
        on_reply: OnReply,
        on_none: Callable[[Tries], None] | None = None,
        on_gone: Callable[[Tries], None] | None = None,
        tries: Tries = NO_TRIES,
    ) -> None:
        """Sends rows to one replica of `group`; `on_reply` gets rows, or an error that no other replica would cure.

        Args:
            on_none: Called instead of waiting, when no replica is there, or none is left; then there is no reply.
            on_gone: Called instead of waiting, when there is no such group (any more); then there is no reply.
            tries: What `on_none` or `on_gone` got, if these rows come from there.
        """
        peer = self._choose(group)
        if peer is None:
            if on_gone is not None and self._is_gone(group):
                on_gone(tries)
            elif on_none is None:
                self._wait_and_call(group, header, rows_TD, on_reply, on_gone, tries)
            else:
                on_none(tries)
            return

        def answered(answer: Answer) -> None:
            if isinstance(answer, PeerLost):
                more = tries.another(peer if answer.with_rows else None, _is_there)
                again = functools.partial(self.call, group, header, rows_TD, on_reply, on_none, on_gone, more)
                self._try_again(again, on_reply, group, more, pause=answer.with_rows and more.deaths > 1)
            else:
                on_reply(answer)

        peer.call(header, rows_TD, answered)

    def _try_again(
        self, again: Callable[[], None], on_reply: OnReply, group: Hashable, tries: Tries, pause: bool
    ) -> None:
        if tries.too_many:
            lost = f"{tries.num} replicas of {group} were lost one after the other while they had these rows"
            on_reply(CallError("internal", lost))
        elif pause:
            self._call_later(PAUSE_S, again)
        else:
            again()

    def wait(
        self,
        awaited: str,
        possible: Callable[[], bool],
        then: Callable[[], None],
        on_failure: Callable[[CallError], None],
    ) -> None:
        """Calls `then` once a replica has come back and something is `possible`.

        Args:
            awaited: What is waited for, for the error's message.
            on_failure: Gets `expert_unavailable` when that takes too long.
        """
        timer = self._call_later(self._recovery_timeout_s, lambda: self._give_up(item))
        item = _Waiting(awaited, possible, then, on_failure, timer)
        self._waiting.append(item)

    def retry_waiting(self) -> None:
        """Does what waits and has become possible; called when a peer has become ready."""
        self._change_over_if_ready()
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            if item.possible():
                item.timer.cancel()
                item.then()
            else:
                self._waiting.append(item)

    def close(self) -> None:
        """Lets go of every peer; calls that wait stay until their time-out."""
        self.update({})

    def _choose(self, group: Hashable) -> Peer | None:
        return self._choose_of(self._groups.get(group, ()))

    def _choose_of(self, addresses: tuple[Address, ...]) -> Peer | None:
        best: Peer | None = None
        # A node has one call under way at a time: if it asked the first of equals, all nodes would ask the same router.
        start = int(random.random() * len(addresses)) if len(addresses) > 1 else 0
        for index in range(start, start + len(addresses)):
            peer = self._peers.get(addresses[index % len(addresses)])
            if peer is not None and peer.ready and (best is None or peer.rows_in_flight < best.rows_in_flight):
                best = peer
        return best

    def _is_gone(self, group: Hashable) -> bool:
        """Whether there are groups, and this one is not among them (any more)."""
        return bool(self._groups) and group not in self._groups

    def _wait_and_call(
        self,
        group: Hashable,
        header: Header,
        rows_TD: Tensor,
        on_reply: OnReply,
        on_gone: Callable[[Tries], None] | None,
        tries: Tries,
    ) -> None:
        self.wait(
            f"replica of {group}",
            lambda: self.has_ready(group) or (on_gone is not None and self._is_gone(group)),
            lambda: self.call(group, header, rows_TD, on_reply, None, on_gone, tries),
            on_reply,
        )

    def _give_up(self, item: _Waiting) -> None:
        if item in self._waiting:
            self._waiting.remove(item)
            item.on_failure(
                CallError(
                    "expert_unavailable",
                    f"no {item.awaited} came back within {self._recovery_timeout_s:g} s (limits.recovery_timeout_s)",
                )
            )


def _is_there(peer: Peer) -> bool:
    return peer.ready


def _addresses(groups: Mapping[Hashable, tuple[Address, ...]]) -> set[Address]:
    return {address for addresses in groups.values() for address in addresses}
