"""The fields that only a service file has."""

import ipaddress
import re
from typing import Annotated, cast

from pydantic import BeforeValidator

from serving.settings import LEAST_UNREAD_BYTES
from spec.fields import MAX_COUNT, Auto, seconds_from
from spec.replicas import MAX_REPLICAS, Replicas, is_replica_count
from spec.rules import Allowed, Rule, is_number, is_text, is_whole, or_auto, or_null


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(is_text(part) for item in value.items() for part in item)


def _are_hosts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) and _is_host_name(each) for each in value)


def _is_host_name(text: str) -> bool:
    if ":" not in text:
        return re.fullmatch(r"[^\s/*]+", text) is not None
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _is_route(value: object) -> bool:
    return isinstance(value, str) and (value == "/" or re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value) is not None)


def _is_fixed(value: object) -> bool:
    if isinstance(value, dict):  # how a plain number is written out again; what is wrong within is said elsewhere
        return value.get("min") == value.get("max")
    return is_replica_count(value) or (isinstance(value, Replicas) and value.min == value.max)


def _are_origins(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    pattern = r"(http://(?!.*:80$)|https://(?!.*:443$))[^\sA-Z/?#@*]+"  # as browsers write them
    return list(value) == ["*"] or all(
        isinstance(origin, str) and re.fullmatch(pattern, origin) is not None for origin in value
    )


def _digits_to_int(value: object) -> object:
    """Mapping keys that travelled through JSON (`serve deploy`) arrive as text."""
    plain = isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,18}", value)  # "01" is no other way to write "1"
    return int(cast("str", value)) if plain else value


FIXED = Rule(f"a whole number from 1 to {MAX_REPLICAS}, and no range: gateways are not scaled with the load", _is_fixed)

FixedReplicaCount = Annotated[Replicas, Allowed(FIXED.words), BeforeValidator(FIXED.check)]
Host = Annotated[
    str, Rule("a host name or address", lambda value: is_text(value) and re.search(r"[\s/]", value) is None)
]
ORIGINS = Rule(
    "a list of origins such as https://chat.example (lower case, no path, no port that is the default), or of * alone",
    _are_origins,
)
Origins = Annotated[tuple[str, ...], Allowed(ORIGINS.words), BeforeValidator(ORIGINS.check)]
HOST_NAMES = Rule("a list of host names, without ports", _are_hosts)
HostNames = Annotated[tuple[str, ...], Allowed(HOST_NAMES.words), BeforeValidator(HOST_NAMES.check)]
Route = Annotated[str, Rule("/ or a path such as /mixtral", _is_route)]
Port = Annotated[int, Rule("a whole number from 1 to 65535", lambda value: is_whole(value, 1, 65535))]
PortOrNull = Annotated[
    int | None, Rule("null or a whole number from 1 to 65535", or_null(lambda value: is_whole(value, 1, 65535)))
]
Window = Annotated[
    int | Auto | None,
    Rule(
        f"auto, null (full attention) or a whole number from 1 to {MAX_COUNT}",
        or_auto(or_null(lambda value: is_whole(value, 1, MAX_COUNT))),
    ),
]
AutoBool = Annotated[bool | Auto, Rule("auto | true | false", or_auto(lambda value: isinstance(value, bool)))]
Share = Annotated[float, Rule("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)]
UnreadBytes = Annotated[
    int,
    Rule(
        f"a whole number from {LEAST_UNREAD_BYTES} to {MAX_COUNT}",
        lambda value: is_whole(value, LEAST_UNREAD_BYTES, MAX_COUNT),
    ),
]
# Below, nobody can be heard in time (members speak once a second, links are looked at four times in it): everything
# would be taken for hung, and replaced, for ever.
Silence = Annotated[float, seconds_from(0.5)]
Interval = Annotated[float, seconds_from(0.1)]
Labels = Annotated[dict[str, str], Rule("a mapping of text to text", _is_labels)]
ExpertId = Annotated[
    int,
    Rule(f"an expert id: a whole number from 0 to {MAX_COUNT}", lambda value: is_whole(value, 0, MAX_COUNT)),
    BeforeValidator(_digits_to_int),
]
