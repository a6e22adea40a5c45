"""Plain data across versions of Manta: what an older or a newer one has written is read, or refused in words."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.members import Announcement, Known
from cluster.messages import NO_TABLE, encode_table, pack_news, read_news
from cluster.plain import FORMAT, FormatError, Formats, pack, unpack
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import spec_from_dict
from model.routing import Routing
from tests.random_checkpoint import make_checkpoint
from transport.address import Address
from transport.table import RoutingTable, ShardEntry

REMEDY = r"Nothing was changed: what runs goes on\. Install Manta .* again .* or stop the service with `manta down`"


@dataclass(frozen=True)
class Older:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Newer:
    """What a later Manta made of it."""

    name: str
    sizes: tuple[int, ...] = ()
    mode: str = "as before"
    labels: dict[str, str] = field(default_factory=dict[str, str])


def sent(value: object) -> Any:
    """As it arrives elsewhere."""
    return json.loads(json.dumps(pack(value)))


def test_a_newer_one_reads_what_an_older_one_wrote() -> None:
    assert unpack(Newer, sent(Older("a", (1, 2))), "it", exact=True) == Newer("a", (1, 2))


def test_an_older_one_ignores_what_a_newer_one_adds_to_a_message_and_refuses_it_in_what_is_stored() -> None:
    said = sent(Newer("a", (1, 2), mode="otherwise"))
    assert unpack(Older, said, "it") == Older("a", (1, 2))
    with pytest.raises(FormatError, match=rf"it, written by Manta .*: mode is not known to Manta .*{REMEDY}"):
        unpack(Older, said, "it", exact=True)


@pytest.mark.parametrize(
    ("ours", "oldest", "theirs", "readable"), [(1, 1, 2, False), (2, 1, 1, True), (3, 2, 1, False), (2, 1, 2, True)]
)
def test_formats_in_both_orders(ours: int, oldest: int, theirs: int, readable: bool) -> None:
    record = {**sent(Older("a")), "format": theirs, "manta": "9.9"}
    formats = Formats(ours, oldest)
    if readable:
        assert unpack(Older, record, "it", formats=formats) == Older("a")
        return
    with pytest.raises(FormatError, match=rf"it has format {theirs}, of Manta 9\.9; Manta .* reads format.*{REMEDY}"):
        unpack(Older, record, "it", formats=formats)


@pytest.mark.parametrize(
    "record",
    [None, 5, "text", b"\x80\x05", [], {}, {"format": "1"}, {"format": None, "data": {}}, {"manta": "1", "data": {}}],
)
def test_what_is_no_record_is_of_before_formats(record: object) -> None:
    with pytest.raises(FormatError, match=rf"it was written by a Manta of before versioned formats\. {REMEDY}"):
        unpack(Older, record, "it")


@pytest.mark.parametrize(
    ("data", "what"),
    [({}, "name: Field required"), ({"name": 5}, "name: "), ({"name": "a", "sizes": ["x"]}, r"sizes\.0"), (7, ": ")],
)
def test_what_is_damaged_says_where(data: object, what: str) -> None:
    with pytest.raises(FormatError, match=rf"it, written by Manta 0: .*{what}.*{REMEDY}"):
        unpack(Older, {"format": FORMAT, "manta": "0", "data": data}, "it")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_nothing_else_than_a_format_error_comes_of_bad_data(data: Any) -> None:
    for kind in (Older, Service, Known, Announcement):
        record = {"format": FORMAT, "manta": "0", "data": data}
        try:
            value = unpack(kind, record, "it", exact=True)
        except FormatError:
            continue
        assert isinstance(value, kind)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "model"
    make_checkpoint(directory, seed=1, num_experts=4)
    return directory


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"experts": {"replicas": {"min": 1, "max": 3}, "labels": {"zone": "a"}, "overrides": {3: {"replicas": 2}}}},
        {"attention": {"cache_tokens": 4096}, "limits": {"drain_timeout_s": 0.5, "load_timeout_s": 7}},
        {"api": {"route_prefix": "/x"}, "router": {"routing": "token"}, "autoscaling": {"interval_s": 1}},
    ],
)
def test_a_service_is_the_same_after_it_was_stored(model: Path, sections: dict[str, Any]) -> None:
    service = resolve(spec_from_dict({"model": {"path": str(model)}, **sections}), Room((2.0, 3.5), own=False))
    service = replace(service, config=replace(service.config, routing=Routing("task", tasks=("a", "b"))))
    again = unpack(Service, sent(service), "it", exact=True)
    assert again == service
    assert again.version == service.version


def test_a_service_of_an_older_and_of_a_newer_manta(model: Path) -> None:
    service = resolve(spec_from_dict({"model": {"path": str(model)}}), Room((2.0,), own=True))
    older, newer = sent(service), sent(service)
    del older["data"]["keys_digest"]  # a field that it did not have
    del older["data"]["spec"]["limits"]["request"]
    assert unpack(Service, older, "it", exact=True) == service
    newer["data"]["config"]["expert_bias"] = True
    with pytest.raises(FormatError, match=r"config\.expert_bias is not known to Manta"):
        unpack(Service, newer, "it", exact=True)
    newer = sent(service)
    newer["data"]["spec"]["limits"]["patience_s"] = 1
    with pytest.raises(FormatError, match=r"spec\.limits\.patience_s"):
        unpack(Service, newer, "it", exact=True)


def test_news_of_an_older_and_of_a_newer_controller() -> None:
    table = RoutingTable(3, (ShardEntry((0, 1), 0, 1, (Address("h", "e", "t", 5),), "v"),), (), (), 7)
    news = pack_news(encode_table(table))
    assert read_news(news).table == table
    later = json.loads(encode_table(table)) | {"weights": [1, 2]}
    later["shards"][0]["gpu"] = True
    assert read_news({**news, "table": json.dumps(later).encode(), "hint": 5}).table == table
    earlier = json.loads(encode_table(table))
    del earlier["epoch"]
    assert read_news({**news, "table": json.dumps(earlier).encode()}).table == replace(table, epoch=0)
    assert read_news(pack_news(stopping=True)).stopping
    assert (NO_TABLE, read_news(pack_news()).table) == ((-1, -1), None)


@pytest.mark.parametrize("table", [b"", b"{", b"[]", b'{"version": "x"}', b"\xff"])
def test_a_table_that_cannot_be_read_is_refused(table: bytes) -> None:
    with pytest.raises(FormatError, match="routing table"):
        read_news({**pack_news(), "table": table})
