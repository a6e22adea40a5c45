"""The transformers baseline, on a small random checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.baseline import TransformersBaseline
from benchmarks.serve import main
from benchmarks.workload import Workload, WorkloadError
from tests.random_checkpoint import make_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    threads = torch.get_num_threads()
    make_checkpoint(tmp_path, seed=3)
    yield tmp_path
    torch.set_num_threads(threads)


def test_every_prompt_gets_all_its_tokens_and_their_times(checkpoint: Path) -> None:
    ended: list[None] = []
    baseline = TransformersBaseline(checkpoint)
    record = baseline.run(Workload(([5, 6, 7], [8, 9, 10], [11, 12, 13]), 5, 2), lambda: ended.append(None))
    assert len(ended) == 3
    assert [request.num_output_tokens for request in record.requests] == [5, 5, 5]
    first, second, third = record.requests
    assert first.chunks_s == second.chunks_s
    assert third.sent_s >= first.chunks_s[-1]
    assert sorted(first.chunks_s) == list(first.chunks_s)
    assert first.sent_s < first.chunks_s[0]


def test_the_command_line_measures_it_alone(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = checkpoint / "out.json"
    sizes = ["--input-len", "4", "--output-len", "3", "--num-prompts", "3", "--concurrency", "2", "--json", str(out)]
    assert main(["--transformers", str(checkpoint), *sizes]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["target"], result["num_completed"], result["num_output_tokens"]) == ("transformers", 3, 9)
    assert "transformers" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"no config\.json"):
        TransformersBaseline(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(WorkloadError, match="transformers cannot load"):
        TransformersBaseline(tmp_path)
