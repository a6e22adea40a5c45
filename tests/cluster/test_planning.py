"""The pure parts of the control plane: the routing table, pauses, events, how far a start has come."""

from typing import Any

from cluster.backoff import FIRST_PAUSE_S, LAST_PAUSE_S, STABLE_S, Backoff
from cluster.events import NUM_EVENTS, NUM_LATEST, Events
from cluster.spec import ShardPlan, spec_for_model
from cluster.startup import CONNECTING, LOADING, PLACING, Progress, progress_of
from cluster.table import routing_table
from transport.address import Address
from transport.table import ShardEntry

ONE, TWO = Address("host", "1", "", 0), Address("host", "2", "", 0)


def test_the_table_holds_every_shard_also_one_that_nobody_serves() -> None:
    first, second = ShardPlan(0, (0, 1), 0, 1), ShardPlan(1, (2, 3), 0, 1)
    table = routing_table((7, 5), "layout", [(first, ONE), (first, TWO), (second, None)], (ONE,), ())
    assert table.position == (7, 5)
    assert table.shards == (ShardEntry((0, 1), 0, 1, (ONE, TWO), "layout"), ShardEntry((2, 3), 0, 1, (), "layout"))
    assert (table.routers, table.nodes) == ((ONE,), ())


def test_pauses_grow_to_a_bound_and_a_long_success_ends_them() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(0.0) for _ in range(20)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S
    assert backoff.pause_s(STABLE_S) == 0.0
    assert backoff.pause_s(1.0) == FIRST_PAUSE_S


def test_only_the_last_events_are_kept() -> None:
    events = Events()
    for number in range(NUM_EVENTS + 5):
        events.note(str(number), False, float(number))
    assert [event["text"] for event in events.as_list()] == [str(number) for number in range(5, NUM_EVENTS + 5)]


def test_the_latest_events_outlive_their_controller() -> None:
    events = Events()
    assert not events.take_changed()
    for number in range(NUM_LATEST + 5):
        events.note(str(number), False, float(number))
    assert (events.take_changed(), events.take_changed()) == (True, False)
    later = Events(events.latest())
    assert later.as_list() == events.as_list()[5:]
    assert not later.take_changed(), "they are stored already"


def started(states: list[str], gateways: int = 0, routers: int = 0, nodes: int = 0) -> dict[str, Any]:
    return {
        "experts": [{"replicas": [{"state": state}]} for state in states],
        "gateways": [{}] * gateways,
        "routers": [{}] * routers,
        "attention_nodes": [{}] * nodes,
    }


def test_how_far_a_start_has_come() -> None:
    spec = spec_for_model("demo", {"router.replicas": 2})
    assert progress_of({}, spec) == Progress(PLACING)
    assert progress_of(started([]), spec) == Progress(PLACING)
    assert progress_of(started(["loading", "serving"]), spec) == Progress(LOADING, 1, 2)
    assert progress_of(started(["serving"], gateways=1, routers=1), spec) == Progress(CONNECTING, 2, 4)
    assert progress_of(started(["serving"], 1, 2, 1), spec) == Progress(CONNECTING, 4, 4)
