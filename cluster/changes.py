"""What changes between two versions of a service, and how each change can be made. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cluster.resolve import Service

How = Literal["live", "rolling", "refused"]

ANOTHER_MODEL = (
    "every part computes with it, and parts of two models cannot work together: serve it under another name and "
    "api.route_prefix, let the clients move, then stop this one with `manta down`"
)
ONE_ENTRANCE = (
    "one host and port serve a whole Ray cluster, fixed when Serve starts: stop every service on it and start it anew"
)
NEW_EXPERTS = (
    "a new set of expert actors is loaded beside the present one, then routers change over at once; for a while the "
    "cluster needs room for both"
)
IN_TURN = "are replaced one after the other, each new one before an old one leaves"
STREAMS_END = "a gateway that leaves ends its streams within limits.drain_timeout_s"
OTHER_KEYS = (
    f"it holds other keys now; gateways {IN_TURN}, and with the last old one the keys that were taken out stop being "
    f"valid; {STREAMS_END}"
)
SHORTER_CACHE = (
    "a sequence that runs may be longer than the caches of new attention nodes then, and could not move there: only "
    "with a window that is not longer can the context be lowered while the service runs; serve it under another name "
    "and api.route_prefix, let the clients move, then stop this one with `manta down`"
)

ONE_WAY_TO_TALK = (
    "parts that use it and parts that do not cannot talk to each other: stop the service with `manta down`, then start "
    "it anew (files of the same names may be replaced at any time: each part reads them when it starts)"
)

# The first entry whose name starts a field's path is its rule.
RULES: tuple[tuple[str, How, str], ...] = (
    ("name", "refused", "a service keeps its name: start another one with `manta serve`"),
    ("model.name", "rolling", f"gateways {IN_TURN}; {STREAMS_END}"),
    ("model.max_context", "rolling", f"gateways and attention nodes {IN_TURN}; {STREAMS_END}"),
    ("model.", "refused", ANOTHER_MODEL),
    ("api.host", "refused", ONE_ENTRANCE),
    ("api.port", "refused", ONE_ENTRANCE),
    ("api.route_prefix", "live", "requests under the old one are not found any more"),
    ("api.replicas", "live", STREAMS_END),
    ("api.", "rolling", f"gateways {IN_TURN}; {STREAMS_END}"),
    ("attention.replicas", "live", "the streams of a node that leaves move to another one"),
    ("attention.", "rolling", f"attention nodes {IN_TURN}; their streams move"),
    ("router.replicas", "live", "the rows of a router that leaves go to another one"),
    ("router.routing", "live", "only says what the checkpoint decides"),
    ("router.", "rolling", f"routers {IN_TURN}"),
    (
        "experts.replicas",
        "live",
        "new ones get rows once loaded; what leaving ones have not answered goes to others",
    ),
    ("experts.on_missing", "rolling", f"routers {IN_TURN}"),
    ("experts.overrides.*.replicas", "live", "as experts.replicas, for one shard"),
    ("experts.", "rolling", NEW_EXPERTS),
    ("autoscaling.", "live", "holds from the next decision on"),
    ("limits.request_timeout_s", "rolling", f"gateways and attention nodes {IN_TURN}; {STREAMS_END}"),
    ("limits.request.", "rolling", f"gateways {IN_TURN}; {STREAMS_END}"),
    ("limits.recovery_timeout_s", "rolling", f"gateways, attention nodes and routers {IN_TURN}; {STREAMS_END}"),
    ("limits.answer_timeout_s", "rolling", f"gateways, attention nodes and routers {IN_TURN}; {STREAMS_END}"),
    ("limits.orphan_timeout_s", "rolling", NEW_EXPERTS),
    ("tls.", "refused", ONE_WAY_TO_TALK),
    ("limits.", "live", "holds from now on"),
)
UNITS = ("replicas", "labels")  # mappings that are one field


@dataclass(frozen=True)
class Change:
    """One field that differs.

    Args:
        field: Its path in the service file.
        how: `live`: nothing restarts; `rolling`: parts are replaced; `refused`: it cannot be changed.
        note: What happens, or what to do instead.
    """

    field: str
    before: object
    after: object
    how: How
    note: str


def changes_between(before: Service, after: Service) -> tuple[Change, ...]:
    """Returns every field that differs, in the order of the service file; then what differs in files that it names."""
    old, new = dict(_fields(before.spec.model_dump())), dict(_fields(after.spec.model_dump()))
    names = list(dict.fromkeys([*old, *new]))
    found = [_change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    explained = any(change.field.startswith("model.") and change.how == "refused" for change in found)
    if before.config != after.config and not explained:
        note = f"its config.json is another one now; {ANOTHER_MODEL}"
        found.append(Change("model.path", str(before.directory), str(after.directory), "refused", note))
    if before.keys_digest != after.keys_digest and "api.keys_file" not in {change.field for change in found}:
        file = after.spec.api.keys_file
        found.append(Change("api.keys_file", file, f"{file} (other keys)", "rolling", OTHER_KEYS))
    if _ring(after) < _ring(before):
        found = [_refused(one, SHORTER_CACHE) if one.field == "model.max_context" else one for one in found]
    return tuple(found)


def _ring(service: Service) -> int:
    """How many positions of a sequence a node's cache keeps."""
    return min(service.config.window or service.max_context, service.max_context)


def _refused(change: Change, note: str) -> Change:
    return replace(change, how="refused", note=note)


def _change(name: str, before: object, after: object) -> Change:
    rule = next(rule for rule in RULES if _matches(name, rule[0]))
    return Change(name, before, after, rule[1], rule[2])


def _matches(name: str, start: str) -> bool:
    pattern, parts = start.split("."), name.split(".")
    if len(parts) < len(pattern):
        return False
    pairs = zip(pattern, parts, strict=False)
    return all(wanted in ("*", "", part) for wanted, part in pairs)


def _fields(section: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, object]]:
    """Yields each field's path and value; a plain number of replicas is shown as one."""
    for name, value in section.items():
        here = f"{path}{name}"
        if isinstance(value, Mapping) and name not in UNITS:
            yield from _fields(value, f"{here}.")
        elif isinstance(value, Mapping) and name == "replicas" and value["min"] == value["max"]:
            yield here, value["min"]
        else:
            yield here, value
