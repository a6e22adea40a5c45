"""What a run with disturbances is summed up to, and shown as."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.faults.compare import Difference
from benchmarks.faults.disturbances import Happening
from benchmarks.faults.load import Answer, Phase
from benchmarks.faults.report import Report, as_json, kind_table, phase_table, remarks
from benchmarks.faults.summary import summarise_kinds, summarise_phase
from benchmarks.faults.verdict import Stall, stalls, verdict
from benchmarks.load import RequestRecord


def answer(*chunks_s: float, sent_s: float, error: str | None = None) -> Answer:
    record = RequestRecord(sent_s, chunks_s, len(chunks_s), error)
    return Answer((0, 0), record, chunks_s[-1] if chunks_s else sent_s, ())


def difference(ended_s: float, margin: float = 0.5) -> Difference:
    return Difference((0, 0), ended_s, 3, 7, 8, margin, 0.25)


CALM = Phase((answer(0.5, 0.75, 1.0, sent_s=0.0),), 0.0, 2.0, 0.5)
DISTURBED = Phase(
    (
        answer(10.25, 12.5, sent_s=10.0),  # a gap of 2.25 s across the first kill, at 11
        answer(14.0, 14.125, sent_s=12.5),  # 1.5 s until its first, in the first kill's time; ends in it too
        answer(19.0, sent_s=14.125, error="cut off"),  # waits from the first kill's time into the second's, at 15
        answer(20.0, 21.0, sent_s=19.5),
    ),
    10.0,
    22.0,
    1.0,
)
EXPERT = Happening("expert", "pid 1, SIGKILL", 11.0, 13.0)
NODE = Happening("node", "pid 2, SIGKILL", 15.0, 19.0)
ODD = [difference(14.125), difference(21.0, margin=0.0)]


def make_report(*happenings: Happening, different: tuple[Difference, ...] = ()) -> Report:
    calm = summarise_phase("calm", CALM, [])
    disturbed = summarise_phase("disturbed", DISTURBED, different)
    kinds = tuple(summarise_kinds(calm, DISTURBED, happenings, different))
    return Report(calm, disturbed, kinds, happenings, different, DISTURBED.began_s)


def test_the_phases() -> None:
    report = make_report(EXPERT, NODE, different=tuple(ODD))
    assert (report.calm.longest_gap_s, report.calm.longest_ttft_s) == (0.25, 0.5)
    assert report.calm.output_tokens_per_s == 1.5
    disturbed = report.disturbed
    assert (disturbed.num_completed, disturbed.num_failed, disturbed.errors) == (3, 1, {"cut off": 1})
    assert (disturbed.longest_gap_s, disturbed.longest_ttft_s) == (2.25, 4.875)
    assert (disturbed.num_different, disturbed.num_unexcused) == (2, 1)
    assert disturbed.output_tokens_per_s == pytest.approx(0.5)  # 6 tokens of those that completed


def test_stalls_failures_and_differences_go_to_their_kind() -> None:
    expert, node = make_report(EXPERT, NODE, different=tuple(ODD)).kinds
    assert (expert.kind, expert.num, expert.took_s) == ("expert", 1, (2.0,))
    assert (expert.stall_s, expert.ttft_stall_s) == (2.0, 4.375)  # less the calm phase's
    assert (expert.num_failed, expert.num_different, expert.num_unexcused) == (0, 1, 1)
    assert (node.stall_s, node.ttft_stall_s) == (0.75, 4.375)
    assert (node.num_failed, node.num_different, node.num_unexcused) == (1, 1, 0)


def test_kills_of_one_kind_are_summed_up_together() -> None:
    again = Happening("expert", "pid 3, SIGKILL", 15.0, None, "not whole")
    (expert,) = make_report(EXPERT, again).kinds
    assert (expert.num, expert.took_s, expert.num_failed) == (2, (2.0,), 1)


def test_a_stall_is_never_negative() -> None:
    calm = summarise_phase("calm", DISTURBED, [])
    (expert,) = summarise_kinds(calm, CALM, [Happening("expert", "", 0.1, 0.2)], [])
    assert (expert.stall_s, expert.ttft_stall_s) == (0.0, 0.0)


def test_what_is_clean() -> None:
    fine = Phase((answer(0.5, 1.0, sent_s=0.0),), 0.0, 2.0, 0.5)
    calm = summarise_phase("calm", CALM, [])

    def clean(phase: Phase, *happenings: Happening, different: tuple[Difference, ...] = ()) -> bool:
        disturbed = summarise_phase("disturbed", phase, different)
        return Report(calm, disturbed, (), happenings, different, 0.0).clean

    assert clean(fine, EXPERT)
    assert clean(fine, EXPERT, different=(ODD[1],))
    assert not clean(fine, EXPERT, different=(ODD[0],))
    assert not clean(DISTURBED, EXPERT)
    assert not clean(fine, Happening("expert", "", 1.0, None, "not whole"))


def test_stalls_that_were_too_long() -> None:
    """The expert's was 2 s; the node's 0.75 s, of which 0.5 s (the calm phase's longest TTFT) are for reading again."""
    report = make_report(EXPERT, NODE)
    assert stalls(report, None) == []
    assert stalls(report, 2.0) == []
    assert [one.kind for one in stalls(report, 0.26)] == ["expert"]
    assert stalls(report, 0.24) == [Stall("expert", 2.0, 0.24), Stall("node", 0.75, 0.74)]
    resized = make_report(replace(NODE, kind="resize nodes"))
    assert stalls(resized, 0.26) == []


def test_the_verdict_says_what_was_lost() -> None:
    report = make_report(EXPERT, NODE)
    lost = "throughput: 0.5 tokens/s while disturbed, 1.5 undisturbed: 66.7% lost"
    assert list(verdict(report, None)) == [lost]
    too_long = "expert: a stall of 2.000 s, of which 0.500 s are allowed (--max-stall)"
    assert list(verdict(report, 0.5)) == [lost, too_long]
    (nothing,) = verdict(replace(report, disturbed=report.calm), None)
    assert nothing.endswith("nothing lost")


def test_it_is_shown() -> None:
    report = make_report(EXPERT, Happening("node", "pid 2", 15.0, None, "not whole"), different=tuple(ODD) * 8)
    console = Console(width=128, record=True, file=io.StringIO())
    console.print(phase_table(report), kind_table(report.kinds))
    shown = console.export_text()
    for word in ("disturbed", "0.33x", "16 (8)", "2250", "4875", "expert", "2.0 / 2.0", "4375"):
        assert word in shown, word
    lines = remarks(report)
    assert lines[0] == "disturbed: 1 failed: cut off"
    assert lines[1] == "node (pid 2): not whole"
    assert lines[2] == (
        "client 0, request 0: output 3 is 8 instead of 7, not excused (margins: tokens 5.0e-01, gates 2.5e-01)"
    )
    assert lines[-1] == "6 more differ"


def test_the_json_has_everything_with_times_from_the_disturbed_phase_on() -> None:
    document = json.loads(as_json(make_report(EXPERT, NODE, different=tuple(ODD)), {"clients": 2}))
    assert document["clean"] is False
    assert [phase["name"] for phase in document["phases"]] == ["calm", "disturbed"]
    assert [one["kind"] for one in document["kinds"]] == ["expert", "node"]
    assert [(one["began_s"], one["recovered_after_s"]) for one in document["disturbances"]] == [(1.0, 2.0), (5.0, 4.0)]
    assert [one["excuse"] for one in document["differences"]] == [None, "two tokens tie"]
    assert document["arguments"] == {"clients": 2}
