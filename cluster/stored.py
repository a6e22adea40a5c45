"""What a service is meant to be, kept outside its controller: a restarted actor gets its first arguments again.

In Ray's internal store, which guards it as it guards Ray's own state. As plain data (`cluster.plain`): a later Manta
may read it.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ray.experimental.internal_kv import (  # pyright: ignore[reportMissingTypeStubs]
    _internal_kv_del,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_get,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_put,  # pyright: ignore[reportPrivateUsage]
)

from cluster.members import Known
from cluster.names import NAMESPACE, spec_name
from cluster.plain import FormatError, pack, unpack
from cluster.resolve import Service

logger = logging.getLogger(__name__)

Which = Literal["accepted", "good"]
FAILURE, KNOWN, EVENTS, EPOCH, BEAT = "failure", "known", "events", "epoch", "beat"


@dataclass(frozen=True)
class _Event:
    time: float
    text: str
    failed: bool


@dataclass(frozen=True)
class _Kept:
    events: list[_Event]


def store_service(service: Service, which: Which) -> None:
    """Keeps a service: as the one that was `accepted` last, or as the last one that was completely there (`good`)."""
    _put(service.name, which, json.dumps(pack(service)).encode())


def stored_service(name: str, which: Which) -> Service | None:
    """Returns what was kept; None: nothing was.

    Raises:
        FormatError: It was kept by another Manta, and cannot be read.
    """
    data = _get(name, which)
    return None if data is None else unpack(Service, _record(data), f"what is stored of service {name}", exact=True)


def is_stored(name: str) -> bool:
    """Returns whether there is such a service, whichever Manta has stored it."""
    return _get(name, "good") is not None


def store_failure(name: str, why: str) -> None:
    """Keeps why going back after a change has failed; empty: it has not."""
    _put(name, FAILURE, why.encode())


def stored_failure(name: str) -> str:
    """Returns what was kept; empty: nothing was."""
    return (_get(name, FAILURE) or b"").decode(errors="replace")


def store_known(name: str, known: Known) -> None:
    """Keeps who takes part in a service, and what was counted in it."""
    _put(name, KNOWN, json.dumps(pack(known)).encode())


def stored_known(name: str) -> Known:
    """Returns what was kept; empty: nothing was, or it cannot be read: then what members had counted is lost."""
    data = _get(name, KNOWN)
    try:
        return Known() if data is None else unpack(Known, _record(data), f"what is stored of the parts of {name}")
    except FormatError as error:
        logger.warning("%s", error)
        return Known()


def store_events(name: str, events: Sequence[dict[str, Any]]) -> None:
    """Keeps a service's last events."""
    _put(name, EVENTS, json.dumps(pack(_Kept([_Event(**event) for event in events]))).encode())


def stored_events(name: str) -> list[dict[str, Any]]:
    """Returns what was kept; empty: nothing was, or it cannot be read."""
    data = _get(name, EVENTS)
    try:
        kept = None if data is None else unpack(_Kept, _record(data), f"the stored events of {name}")
    except FormatError as error:
        logger.warning("%s", error)
        return []
    return [] if kept is None else [asdict(event) for event in kept.events]


def next_epoch(name: str) -> int:
    """Returns what a controller that begins now puts before the versions of its tables: more than all before it.

    It is the time in milliseconds, so that nothing has to be kept when the service is over; while it is not, what was
    given out last counts too, whichever way the clock was set meanwhile.
    """
    last = _get(name, EPOCH) or b"0"
    return max((int(last) if last.isdigit() else 0) + 1, time.time_ns() // 1_000_000)


def store_epoch(name: str, epoch: int) -> None:
    """Keeps the last one that was given out."""
    _put(name, EPOCH, str(epoch).encode())


def store_beat(name: str, beat: str) -> None:
    """Keeps what changes as long as a service's controller hears members."""
    _put(name, BEAT, beat.encode())


def stored_beat(name: str) -> str:
    """Returns what was kept last; empty: nothing was."""
    return (_get(name, BEAT) or b"").decode(errors="replace")


def forget_service(name: str) -> None:
    """Forgets all of it; first what tells that there is a service, in case that this is interrupted."""
    for which in ("good", "accepted", FAILURE, KNOWN, EVENTS, EPOCH, BEAT):
        _internal_kv_del(spec_name(name, which), namespace=NAMESPACE.encode())


def _put(name: str, what: str, data: bytes) -> None:
    _internal_kv_put(spec_name(name, what), data, overwrite=True, namespace=NAMESPACE.encode())


def _get(name: str, what: str) -> bytes | None:
    return _internal_kv_get(spec_name(name, what), namespace=NAMESPACE.encode()) or None


def _record(data: bytes) -> object:
    """Returns stored data as `unpack` reads it; None: it is none of ours, such as what was pickled."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # the first of decoding, too
        return None
