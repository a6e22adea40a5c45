"""Who takes part, who has fallen silent, and what is told of them."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.members import MAX_REMEMBERED, Announcement, Known, Members
from serving.exposition import merge_and_render
from serving.metrics import GatewayMetrics, SequenceTimer
from transport.address import Address

NODE = Address("host", "node.sock", "", 0)
TIMEOUT_S = 3.0


def said(role: str = "node", app: str = "app", **snapshot: object) -> Announcement:
    return Announcement(role, None if role == "gateway" else NODE, 7, "ray-node", app, "replica", snapshot)  # pyright: ignore[reportArgumentType]


def test_members_are_new_once() -> None:
    members = Members()
    assert not members
    assert members.heard("a", said(), 0.0)
    assert not members.heard("a", said(), 1.0)
    assert members.addresses("node") == (NODE,)
    assert members.addresses("router") == ()
    assert members.remove("a") == said()
    assert members.remove("a") is None
    assert not members


def test_the_silent_are_dropped() -> None:
    members = Members()
    members.heard("a", said(), 0.0)
    members.heard("b", said("router"), 5.0)
    assert members.drop_silent(TIMEOUT_S, TIMEOUT_S) == []
    assert members.drop_silent(TIMEOUT_S + 0.1, TIMEOUT_S) == [said()]
    assert len(members) == 1


def test_who_stays_silent_hangs_and_who_is_heard_again_is_a_member_again() -> None:
    members = Members()
    for name in ("hangs", "returns", "leaves"):
        members.heard(name, said(), 0.0)
    assert len(members.drop_silent(TIMEOUT_S + 0.1, TIMEOUT_S)) == 3
    assert members.addresses("node") == ()
    assert members.take_hung(2 * TIMEOUT_S, TIMEOUT_S) == []
    assert members.heard("returns", said(), 2 * TIMEOUT_S)
    assert members.remove("leaves") == said()
    assert members.take_hung(2 * TIMEOUT_S + 0.1, TIMEOUT_S) == [said()]
    assert members.take_hung(9 * TIMEOUT_S, TIMEOUT_S) == []
    assert members.addresses("node") == (NODE,)


@pytest.mark.parametrize("restarted", [False, True])
def test_one_that_lives_and_is_not_understood_is_as_it_was_said_last(restarted: bool) -> None:
    """Nor is it given up, or ended as one that hangs, by a controller that has never understood it."""
    members = Members()
    members.heard("a", said(), 0.0)
    members = Members(members.known, 0.0) if restarted else members
    for second in range(1, 20):
        members.lives("a", second)
        members.lives("never heard of", second)
        assert members.drop_silent(second, TIMEOUT_S) == []
        assert members.take_hung(second, TIMEOUT_S) == []
    assert members.addresses("node") == (NODE,)
    assert members.drop_silent(30.0, TIMEOUT_S) == [said()]


def test_those_that_an_earlier_controller_knew_keep_their_peers_until_they_are_silent_for_too_long() -> None:
    """A table that came before a slow member was heard again would cut connections that are in use."""
    known = Known({"slow": said(), "gone": said("router"), "leaves": said("router")})
    members = Members(known, heard_s=4.0)
    assert members.addresses("node") == (NODE,)
    assert members.addresses("router") == (NODE, NODE)
    members.remove("leaves")
    assert members.addresses("router") == (NODE,)
    assert members.drop_silent(4.0 + TIMEOUT_S, TIMEOUT_S) == []
    assert members.heard("slow", said(), 6.9)
    assert members.drop_silent(4.1 + TIMEOUT_S, TIMEOUT_S) == [said("router")]
    assert members.drop_silent(4.2 + TIMEOUT_S, TIMEOUT_S) == [], "told once"
    assert (members.addresses("node"), members.addresses("router")) == ((NODE,), ())
    assert members.take_hung(4.1 + 2 * TIMEOUT_S, TIMEOUT_S) == [said("router")]


def test_those_that_only_an_earlier_controller_has_heard_have_the_keys_that_it_was_told_of() -> None:
    """They are waited for before the old key goes, as long as their peers are to keep them."""
    known = Known({"slow": replace(said(), pid=8, keys_generation=1), "quick": replace(said(), keys_generation=2)})
    members = Members(known, heard_s=4.0)
    assert members.behind(2) == ["node 8"]
    members.heard("quick", replace(said(), keys_generation=2), 4.0)
    assert members.behind(2) == ["node 8"]
    assert sorted(members.behind(3)) == ["node 7", "node 8"]
    members.drop_silent(4.1 + TIMEOUT_S, TIMEOUT_S)
    assert members.behind(3) == []


def test_silence_while_nobody_listened_is_forgiven() -> None:
    members = Members()
    members.heard("a", said(), 0.0)
    members.forgive(60.0)
    assert members.drop_silent(61.0, TIMEOUT_S) == []
    assert members.drop_silent(60.0 + TIMEOUT_S + 0.1, TIMEOUT_S) == [said()]


def test_snapshots_are_of_gateways_and_nodes_and_never_ones_own() -> None:
    members = Members()
    members.heard("me", said("gateway", prompt_tokens=1), 0.0)
    members.heard("other", said("gateway", prompt_tokens=2), 0.0)
    members.heard("node", said(running=3), 0.0)
    members.heard("router", said("router"), 0.0)
    assert members.snapshots("me") == [("gateway", {"prompt_tokens": 2}), ("node", {"running": 3})]
    assert members.apps == ("app",)


def counted(num_tokens: int) -> dict[str, Any]:
    """What a gateway says after one sequence of so many tokens."""
    metrics = GatewayMetrics()
    timer = SequenceTimer(metrics, 3, 0.0)
    timer.tokens(1, 1.0)
    timer.tokens(num_tokens - 1, 2.0)
    timer.finished("length", 2.0)
    return dict(metrics.snapshot())


def node_says(preemptions: int) -> dict[str, int]:
    used = {"running": 1, "waiting": 0, "cache_used_tokens": 5, "cache_total_tokens": 10}
    return {**used, "preemptions_total": preemptions}


def scraped(members: Members, asking: str, own: Any) -> dict[str, float]:
    """What Prometheus is shown by one gateway, by series; as the gateway and the controller do it together."""
    members.tell(asking, own)
    text = merge_and_render([own, *(snapshot for _, snapshot in members.snapshots(asking))], "m")  # pyright: ignore[reportArgumentType]
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series.replace('model_name="m"', "").replace("{}", ""): float(value) for series, _, value in lines}


def going(members: Members, how: str) -> None:
    """`gone` (a gateway) and `node` go: they leave, or fall silent for good."""
    for name in ("gone", "node"):
        if how == "left":
            members.remove(name)
    if how != "left":
        members.heard("stays", said("gateway", **counted(4)), 100.0)
        members.heard("other-node", said(**node_says(1)), 100.0)
        members.drop_silent(100.0, TIMEOUT_S)
    if how == "hung":
        assert len(members.take_hung(100.0, TIMEOUT_S)) == 2


@pytest.mark.parametrize("how", ["left", "silent", "hung"])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_counted_never_falls(how: str, restarted: bool) -> None:
    members = Members()
    members.heard("stays", said("gateway", **counted(4)), 0.0)
    members.heard("gone", said("gateway", **counted(6)), 0.0)
    members.heard("node", said(**node_says(2)), 0.0)
    members.heard("other-node", said(**node_says(1)), 0.0)
    before = scraped(members, "stays", counted(4))
    assert before["manta_generation_tokens_total"] == 10
    assert before["manta_num_preemptions_total"] == 3
    assert before["manta_num_attention_nodes"] == 2
    going(members, how)
    if restarted:
        members = Members(members.known)
        members.heard("stays", said("gateway", **counted(4)), 0.0)
        members.heard("other-node", said(**node_says(1)), 0.0)
    after = scraped(members, "stays", counted(4))
    gauges = {name: after.pop(name) for name in list(after) if name.startswith(("manta_num_att", "manta_num_requests"))}
    assert gauges == {"manta_num_attention_nodes": 1, "manta_num_requests_running": 1, "manta_num_requests_waiting": 0}
    assert {name: after[name] for name in after} == {name: before[name] for name in after}


def test_what_was_counted_by_many_that_are_gone_is_one_sum() -> None:
    members = Members()
    for number in range(100):
        members.heard(str(number), said("gateway", **counted(2)), 0.0)
        members.remove(str(number))
    assert len(members.known.said) == 0
    [(role, total)] = members.snapshots("me")
    assert (role, total["generation_tokens"], total["successes"]) == ("gateway", 200, {"length": 100})
    assert members.snapshots("me") == members.snapshots("me")


def test_who_is_shown_is_known_as_shown() -> None:
    """A gateway that shows its present counts and is killed before it announces them again."""
    members = Members()
    members.heard("killed", said("gateway", **counted(2)), 0.0)
    assert scraped(members, "killed", counted(9))["manta_generation_tokens_total"] == 9
    members.drop_silent(100.0, TIMEOUT_S)
    members.take_hung(100.0, TIMEOUT_S)
    assert scraped(members, "new", counted(2))["manta_generation_tokens_total"] == 11


def test_a_later_controller_waits_for_those_that_count() -> None:
    before = Members()
    for name, role in (("gateway", "gateway"), ("node", "node"), ("dead", "node"), ("router", "router")):
        before.heard(name, said(role), 0.0)
    assert before.complete
    members = Members(before.known, 50.0)
    assert not members
    assert not members.complete
    members.heard("gateway", said("gateway"), 51.0)
    members.heard("node", said(), 51.0)
    assert not members.complete
    assert len(members.take_hung(50.0 + 2 * TIMEOUT_S + 0.1, TIMEOUT_S)) == 2
    assert members.complete
    assert len(members) == 2


def test_status_shows_plain_figures_and_the_used_share_of_the_cache() -> None:
    members = Members()
    members.heard("node", said(cache_used_tokens=25, cache_total_tokens=100, histograms={"a": 1}), 0.0)
    assert members.status("node") == [
        {
            "pid": 7,
            "host": "ray-node",
            "address": str(NODE),
            "cache_used_tokens": 25,
            "cache_total_tokens": 100,
            "cache_used": 0.25,
        }
    ]


@pytest.mark.parametrize("restarted", [False, True])
def test_what_arrives_of_one_that_has_left_is_ignored(restarted: bool) -> None:
    members = Members()
    members.heard("left", said("gateway", **counted(5)), 0.0)
    members.remove("left")
    members.remove("left before it was heard")
    if restarted:
        members = Members(members.known)
    for name in ("left", "left before it was heard"):
        assert not members.heard(name, said("gateway", **counted(5)), 1.0)
    assert not members
    assert scraped(members, "new", counted(2))["manta_generation_tokens_total"] == 7


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
def test_one_that_was_taken_for_hung_and_is_heard_yet_counts_once(restarted: bool, leaves: bool) -> None:
    members = Members()
    members.heard("hung", said("gateway", **counted(5)), 0.0)
    members.drop_silent(100.0, TIMEOUT_S)
    assert len(members.take_hung(100.0, TIMEOUT_S)) == 1
    if restarted:
        members = Members(members.known)
    assert scraped(members, "new", counted(2))["manta_generation_tokens_total"] == 7
    assert scraped(members, "hung", counted(6))["manta_generation_tokens_total"] == 6
    if leaves:
        members.remove("hung")
    else:
        assert members.heard("hung", said("gateway", **counted(6)), 101.0)
    assert scraped(members, "new", counted(2))["manta_generation_tokens_total"] == 8


def test_what_is_remembered_is_bounded_and_counts_all_the_same() -> None:
    members = Members()
    for number in range(2 * MAX_REMEMBERED):
        members.heard(f"{number} hangs", said("gateway", **counted(2)), 0.0)
        members.heard(f"{number} leaves", said("gateway", **counted(1)), 0.0)
        members.remove(f"{number} leaves")
    members.drop_silent(100.0, TIMEOUT_S)
    members.take_hung(100.0, TIMEOUT_S)
    assert (len(members.known.hung), len(members.known.left)) == (MAX_REMEMBERED, MAX_REMEMBERED)
    assert scraped(members, "new", counted(1))["manta_generation_tokens_total"] == 6 * MAX_REMEMBERED + 1


def test_what_nodes_counted_is_shown_while_none_lives() -> None:
    members = Members()
    members.heard("node", said(**node_says(3)), 0.0)
    members.remove("node")
    shown = scraped(members, "gateway", counted(1))
    assert (shown["manta_num_preemptions_total"], shown["manta_num_attention_nodes"]) == (3, 0)


def test_a_silent_one_that_shows_its_counts_is_known_as_shown_and_its_application_too() -> None:
    members = Members()
    members.heard("silent", said("gateway", **counted(2)), 0.0)
    members.drop_silent(100.0, TIMEOUT_S)
    assert scraped(members, "silent", counted(9))["manta_generation_tokens_total"] == 9
    assert scraped(members, "new", counted(2))["manta_generation_tokens_total"] == 11
    assert members.apps == ("app",)
