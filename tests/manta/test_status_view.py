"""What `manta status` shows to people."""

from typing import Any

from rich.console import Console

from manta.status_view import print_status


def shown(**changes: Any) -> str:
    replica = {
        "replica": 0,
        "pid": 11,
        "host": "abcdefgh",
        "state": "serving",
        "loaded": 1.0,
        "rows_per_s": 12.4,
        "queue": 3,
        "utilization": 0.25,
        "error": "",
    }
    status: dict[str, Any] = {
        "name": "one",
        "state": "running",
        "model": "demo",
        "spec_version": "v1",
        "resize": None,
        "controller": {"pid": 1, "host": "abcdefgh"},
        "experts": [
            {"shard": 0, "experts": [0, 1], "slice": 1, "num_slices": 2, "replicas": [replica]},
            {"shard": 1, "experts": [2], "slice": 0, "num_slices": 1, "replicas": [{**replica, "state": "placing"}]},
        ],
        "routers": [{"pid": 12, "host": "abcdefgh"}],
        "attention_nodes": [{"pid": 13, "host": "abcdefgh", "running": 2, "waiting": 1, "cache_used": 0.5}],
        "gateways": [],
        "events": [{"time": 0.0, "text": "it [died]", "failed": True}],
        **changes,
    }
    console = Console(width=120)
    with console.capture() as captured:
        print_status(status, console)
    return captured.get()


def test_each_part_has_a_table() -> None:
    text = shown()
    assert "one (running): model demo, version v1, controller 1 on abcdef" in text
    assert "0-1, slice 2 of 2" in text
    assert "25 %" in text
    assert "50.0 %" in text
    assert "placing" in text
    assert "none" in text  # no gateways
    assert "it [died]" in text


def test_a_change_is_told_with_its_progress_or_its_reason() -> None:
    change = {"version": "v2", "state": "running", "stage": "loading the experts", "done": 1, "total": 3, "error": ""}
    assert "last change, to version v2: running, loading the experts 1/3" in shown(resize=change)
    failed = {**change, "state": "rolled back", "error": "no room"}
    assert "last change, to version v2: rolled back: no room" in shown(resize=failed)


def test_what_events_and_errors_quote_is_written_out() -> None:
    """A name in a checkpoint, say, that would clear the screen."""
    event = {"time": 0.0, "text": "expert 3: tensor '\x1b[2J' is missing", "failed": True}
    text = shown(events=[event], resize={"version": "v2", "state": "failed", "error": "\x1b]0;x\x07", "done": 0})
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert "\\x1b]0;x\\x07" in text


def test_of_a_refused_service_no_part_is_said_to_be_absent() -> None:
    """Its controller does not know of any; an event names what runs."""
    text = shown(state="refused", experts=[], routers=[], attention_nodes=[], gateways=[])
    assert (text.count("unknown"), text.count("none")) == (4, 0)
