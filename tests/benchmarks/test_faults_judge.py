"""What a run is judged by: the undisturbed answers, and the model itself where those are in doubt."""

from pathlib import Path

import pytest

from benchmarks.faults.command import Run, check_reference, gate_margins, judge
from benchmarks.faults.disturbances import Happening
from benchmarks.faults.exact import ExactModel
from benchmarks.faults.load import Answer, Phase
from benchmarks.faults.service import ServiceError
from benchmarks.load import RequestRecord
from tests.random_checkpoint import make_checkpoint

PROMPTS = (([5, 6, 7],), ([8, 9, 10],))
SMALL = {"hidden_size": 32, "ffn_size": 48, "vocab_size": 97, "with_tokenizer": False}


def phase(*outputs: tuple[int, ...], error: str | None = None) -> Phase:
    """One request of each client."""
    record = RequestRecord(0.0, (1.0, 2.0), 3, error)
    answers = tuple(Answer((client, 0), record, 2.0, ids, (0.5,) * 3) for client, ids in enumerate(outputs))
    return Phase(answers, 0.0, 3.0, 0.1)


def test_another_output_is_found_and_the_model_is_asked_once(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path, seed=seed, **SMALL)
    same = phase((1, 2, 3), (4, 5, 6))
    kill = Happening("node", "pid 1", 1.0, 2.0)
    report = judge(Run(same, same, phase((1, 2, 3), (4, 5, 7)), [kill]), gate_margins(tmp_path, PROMPTS, 6))
    (found,) = report.differences
    assert (found.key, found.position, found.expected, found.got) == ((1, 0), 2, 6, 7)
    assert found.gate_margin == pytest.approx(ExactModel(tmp_path, 6).gate_margin([8, 9, 10, 4, 5]), rel=1e-9)
    assert report.clean is (found.excuse is not None)
    assert (report.calm.num_different, report.disturbed.num_different) == (0, 1)


def test_the_model_is_not_read_without_need(tmp_path: Path) -> None:
    same = phase((1, 2, 3), (4, 5, 6))
    report = judge(Run(same, same, same, []), gate_margins(tmp_path / "nowhere", PROMPTS, 6))
    assert report.clean


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (phase((1, 2, 3), error="HTTP 503: busy"), "1 of 1 undisturbed requests failed: HTTP 503: busy"),
        (phase((1, 2, 3), ()), "0 token ids instead of 3; does the server honour return_token_ids"),
    ],
)
def test_without_whole_undisturbed_answers_nothing_can_be_compared(reference: Phase, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        check_reference(reference, 3)
