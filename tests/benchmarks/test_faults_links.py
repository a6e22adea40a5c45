"""Links with faults under a whole service: nothing fails, nothing differs, and the faults were really there."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.faults.links import measure, parse, show
from tests.random_checkpoint import make_checkpoint

SHORT = ["--clients", "2", "--requests", "2", "--prompt-tokens", "9", "--output-tokens", "12", "--calm", "0.5"]


@pytest.mark.parametrize(
    ("links", "over"),
    [("cut:1,silent", "tcp"), pytest.param("reset,delay,slow,silent,cut:3", "unix,tcp", marks=pytest.mark.full)],
)
def test_outputs_are_those_of_transformers(tmp_path: Path, seed: int, links: str, over: str) -> None:
    make_checkpoint(tmp_path, seed=seed, hidden_size=32, ffn_size=48)
    arguments = parse(
        ["--model", str(tmp_path), *SHORT, "--hold", "0.4", "--links", links, "--over", over, "--seed", str(seed)]
    )
    found = measure(arguments, Console(quiet=True))
    assert [one.over for one in found] == over.split(",")
    for report, num_cut in ((one.report, one.num_cut) for one in found):
        assert report.clean, report
        assert len(report.happenings) == 3 * len(arguments.links)
        kinds = {f"{kind} to {hop}" for kind in arguments.links for hop in arguments.hops}
        assert {one.kind for one in report.happenings} == kinds
        assert report.disturbed.num_completed > 0
        silent = [one.note for one in report.happenings if one.kind.startswith("silent")]
        assert num_cut >= len(silent)
        assert not [note for note in silent if " 0 connections" in note], "a link that was silent breaks"
    assert all(one.clean(breaks=True) for one in found), "the undisturbed answers too are those of transformers"
    assert show(found, arguments) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--links", "bent"], "nothing is called 'bent'; there are cut, reset, delay, slow, silent"),
        (["--links", "cut:0"], "'cut:0' needs a whole number from 1 up"),
        (["--hops", "gateway"], "nothing is called 'gateway'; there are node, router, expert"),
        (["--json", "no/such/folder/out.json"], "folder does not exist"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_defaults() -> None:
    arguments = parse([])
    assert arguments.links == ["cut"] * 5 + ["reset", "delay", "slow", "silent"]
    assert arguments.hops == ["node", "router", "expert"]
    assert arguments.over == ["unix", "tcp"]
