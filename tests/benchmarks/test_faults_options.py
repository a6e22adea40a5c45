"""The command line of the benchmark with kills."""

import pytest

from benchmarks.faults.command import main
from benchmarks.faults.options import parse


def test_the_defaults() -> None:
    arguments = parse([])
    assert (arguments.model, arguments.clients, arguments.signal) == ("demo", 16, "kill")
    assert arguments.kill == ["expert"] * 10
    assert arguments.replicas == {"experts": 2, "routers": 2, "nodes": 2, "gateways": 2}


def test_kills_with_and_without_counts() -> None:
    assert parse(["--kill", "expert:2,router,node:1,controller"]).kill == [
        "expert",
        "expert",
        "router",
        "node",
        "controller",
    ]
    assert parse(["--kill", "gateway,expert"]).kill == ["gateway"] + ["expert"] * 10


def test_resizes_take_the_place_of_kills() -> None:
    arguments = parse(["--resize", "experts:2,nodes"])
    assert arguments.resize == ["experts"] * 2 + ["nodes"] * 5
    assert arguments.kill == []
    assert parse(["--resize", "routers:1", "--kill", "node"]).kill == ["node"]


def test_replicas_that_are_not_named_stay_two() -> None:
    assert parse(["--replicas", "experts=3,nodes=1"]).replicas == {
        "experts": 3,
        "routers": 2,
        "nodes": 1,
        "gateways": 2,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kill", "expert,rooter"],
            "nothing is called 'rooter'; there are expert, router, node, gateway, controller",
        ),
        (["--kill", "expert:0"], "'expert:0' needs a whole number from 1 up"),
        (["--kill", "expert:"], "'expert:' needs a whole number"),
        (["--kill", ""], "nothing is called ''"),
        (["--replicas", "experts"], "'experts' needs a whole number"),
        (["--replicas", "controllers=2"], "nothing is called 'controllers'; there are experts, routers, nodes"),
        (["--resize", "gateways"], "nothing is called 'gateways'; there are experts, routers, nodes"),
        (["--attach", "demo", "--resize", "nodes"], "leave it out with --attach"),
        (["--signal", "hup"], "--signal"),
        (["--clients", "0"], "--clients"),
        (["--hang", "-1"], "--hang"),
        (["--timeout", "inf"], "--timeout"),
        (["--max-stall", "0"], "--max-stall"),
        (["--json", "no/such/folder/out.json"], "folder does not exist"),
        (["--attach", "demo", "--replicas", "experts=2"], "leave it out with --attach"),
        (["--url", "http://127.0.0.1:1"], "name that with --attach"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "max_stall"),
    [
        ([], 0.5),
        (["--resize", "nodes"], 0.5),
        (["--signal", "stop"], None),
        (["--signal", "stop", "--max-stall", "9"], 9.0),
        (["--max-stall", "0.2"], 0.2),
    ],
)
def test_how_long_streams_may_stand_still(words: list[str], max_stall: float | None) -> None:
    assert parse(words).max_stall == max_stall


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no/such/model"], "this directory does not exist"),
        (["--model", ""], "model.path"),
        (["--prompt-tokens", "4000", "--output-tokens", "97"], "make 4097 positions; the model has 4096"),
    ],
)
def test_what_cannot_be_served_ends_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
