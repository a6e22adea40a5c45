"""What is told of a run that Ray Train has given up."""

from pathlib import Path

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tests.training.test_loop import job
from training.trainer import reason_of
from training.workers import Workers


def test_workers_that_found_no_room_are_told_with_the_setting(tmp_path: Path, seed: int) -> None:
    workers = Workers(2, 2, num_cpus=3, start_timeout_s=20)
    reason = reason_of(ControllerError(WorkerGroupStartupTimeoutError(2)), job(tmp_path, seed), workers)
    assert reason.startswith(
        "no room within 20 s (limits.start_timeout_s) for 2 workers with 3 CPU each, tried 4 times; "
        "there is no checkpoint yet; end what holds the rest"
    )


def test_the_rank_that_failed_by_itself_is_named(tmp_path: Path, seed: int) -> None:
    failures: dict[int, Exception] = {
        0: RuntimeError("[gloo] Connection closed by peer"),
        1: ValueError("no more room"),
    }
    reason = reason_of(WorkerGroupError("two ranks failed", failures), job(tmp_path, seed), Workers(2, 2))
    assert reason == "rank 1: no more room"
