"""Who takes part, who has fallen silent, and what is told of them."""

from cluster.members import Announcement, Members
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
