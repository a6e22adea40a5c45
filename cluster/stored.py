"""What a service is meant to be, kept outside its controller: a restarted actor gets its first arguments again.

In Ray's internal store, which guards it as it guards Ray's own state; only Ray's control plane pickles it.
"""

import json
import pickle
import time
from collections.abc import Sequence
from typing import Any, Literal

from ray.experimental.internal_kv import (  # pyright: ignore[reportMissingTypeStubs]
    _internal_kv_del,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_get,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_put,  # pyright: ignore[reportPrivateUsage]
)

from cluster.members import Known
from cluster.names import NAMESPACE, spec_name
from cluster.resolve import Service

Which = Literal["accepted", "good"]
FAILURE, KNOWN, EVENTS, EPOCH = "failure", "known", "events", "epoch"


def store_service(service: Service, which: Which) -> None:
    """Keeps a service: as the one that was `accepted` last, or as the last one that was completely there (`good`)."""
    _internal_kv_put(
        spec_name(service.name, which), pickle.dumps(service), overwrite=True, namespace=NAMESPACE.encode()
    )


def stored_service(name: str, which: Which) -> Service | None:
    """Returns what was kept; None: nothing was."""
    data = _internal_kv_get(spec_name(name, which), namespace=NAMESPACE.encode())
    return pickle.loads(data) if data else None  # noqa: S301 - our own, out of Ray's store


def store_failure(name: str, why: str) -> None:
    """Keeps why going back after a change has failed; empty: it has not."""
    _internal_kv_put(spec_name(name, FAILURE), why.encode(), overwrite=True, namespace=NAMESPACE.encode())


def stored_failure(name: str) -> str:
    """Returns what was kept; empty: nothing was."""
    data = _internal_kv_get(spec_name(name, FAILURE), namespace=NAMESPACE.encode())
    return data.decode() if data else ""


def store_known(name: str, known: Known) -> None:
    """Keeps who takes part in a service, and what was counted in it."""
    _internal_kv_put(spec_name(name, KNOWN), pickle.dumps(known), overwrite=True, namespace=NAMESPACE.encode())


def stored_known(name: str) -> Known:
    """Returns what was kept; empty: nothing was."""
    data = _internal_kv_get(spec_name(name, KNOWN), namespace=NAMESPACE.encode())
    return pickle.loads(data) if data else Known()  # noqa: S301 - our own, out of Ray's store


def store_events(name: str, events: Sequence[dict[str, object]]) -> None:
    """Keeps a service's last events."""
    data = json.dumps(events).encode()
    _internal_kv_put(spec_name(name, EVENTS), data, overwrite=True, namespace=NAMESPACE.encode())


def stored_events(name: str) -> list[dict[str, Any]]:
    """Returns what was kept; empty: nothing was."""
    data = _internal_kv_get(spec_name(name, EVENTS), namespace=NAMESPACE.encode())
    return json.loads(data) if data else []


def next_epoch(name: str) -> int:
    """Returns what a controller that begins now puts before the versions of its tables: more than all before it.

    It is the time in milliseconds, so that nothing has to be kept when the service is over; while it is not, what was
    given out last counts too, whichever way the clock was set meanwhile.
    """
    last = _internal_kv_get(spec_name(name, EPOCH), namespace=NAMESPACE.encode())
    return max(int(last or 0) + 1, time.time_ns() // 1_000_000)


def store_epoch(name: str, epoch: int) -> None:
    """Keeps the last one that was given out."""
    _internal_kv_put(spec_name(name, EPOCH), str(epoch).encode(), overwrite=True, namespace=NAMESPACE.encode())


def forget_service(name: str) -> None:
    """Forgets all of it; first what tells that there is a service, in case that this is interrupted."""
    for which in ("good", "accepted", FAILURE, KNOWN, EVENTS, EPOCH):
        _internal_kv_del(spec_name(name, which), namespace=NAMESPACE.encode())
