"""Which processes of a service serve, read from what `cluster.lifecycle.status` returns. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MEMBERS = {"router": "routers", "node": "attention_nodes", "gateway": "gateways"}
KINDS = ("expert", *MEMBERS, "controller")


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves. `host` is its Ray node."""

    kind: str
    pid: int
    host: str


def serving(status: Mapping[str, Any]) -> list[Process]:
    """Every process that serves at present."""
    replicas = [replica for shard in status["experts"] for replica in shard["replicas"]]
    found = [("expert", replica) for replica in replicas if replica["state"] == "serving"]
    found += [(kind, member) for kind, part in MEMBERS.items() for member in status[part]]
    found.append(("controller", status["controller"]))
    return [Process(kind, int(one["pid"]), str(one["host"])) for kind, one in found]


def counts(processes: Iterable[Process]) -> Counter[str]:
    """How many processes of each kind there are."""
    return Counter(process.kind for process in processes)


def is_replaced(now: Iterable[Process], victim: int, whole: Counter[str]) -> bool:
    """Whether as many of every kind serve as when the service was whole, `victim` not counted."""
    return counts(process for process in now if process.pid != victim) >= whole


def is_whole(now: Iterable[Process], victim: int, whole: Counter[str]) -> bool:
    """Whether the service is as it was, and has also forgotten `victim`."""
    now = list(now)
    return counts(now) == whole and all(process.pid != victim for process in now)
