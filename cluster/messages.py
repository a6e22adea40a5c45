"""What members and the controller say to each other, as plain data: each may run another version of Manta."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.plain import SAID, FormatError, pack, unpack
from transport.table import RoutingTable

NO_TABLE = (-1, -1)  # the position of none: differs from every table's
_TABLE = TypeAdapter(RoutingTable)


@dataclass(frozen=True)
class News:
    """What a member is told: a new routing table, that the service is being stopped, or neither."""

    table: RoutingTable | None = None
    stopping: bool = False


@dataclass(frozen=True)
class _Said:
    stopping: bool = False


def encode_table(table: RoutingTable) -> bytes:
    """Returns a table as JSON: made once, and sent to every member."""
    return _TABLE.dump_json(table)


def pack_news(table: bytes | None = None, stopping: bool = False) -> dict[str, Any]:
    """Returns news as plain data; `table` as `encode_table` made it."""
    return {**pack(_Said(stopping), SAID), "table": table}


def read_news(record: object) -> News:
    """Returns what the controller said.

    Raises:
        FormatError: It is of a Manta whose words are not understood here.
    """
    said = unpack(_Said, record, "the controller's news", formats=SAID)
    table = record.get("table") if isinstance(record, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if table is None:
        return News(None, said.stopping)
    try:
        return News(_TABLE.validate_json(table), said.stopping)  # pyright: ignore[reportUnknownArgumentType]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise FormatError(f"the controller's routing table: {first['loc']}: {first['msg']}") from None
