"""Whoever serves on a cluster whose proxy bounds no connection is told so, and how to have it otherwise."""

import signal
from pathlib import Path

import pytest

from cluster.ingress import GUARD_VARIABLE
from cluster.ray_session import RAY_ENVIRONMENT
from tests.integration.ray_head import START_S, STOP_S, started_head
from tests.integration.ray_service import wait_until

pytestmark = pytest.mark.cluster


@pytest.mark.full
@pytest.mark.parametrize("guard", ["", RAY_ENVIRONMENT[GUARD_VARIABLE]])
def test_it_is_said_once_at_the_start(tmp_path: Path, guard: str) -> None:
    with started_head(tmp_path, OMP_NUM_THREADS="1", **{GUARD_VARIABLE: guard}) as head:
        served = head.start("manta", "serve", "demo", "--address", "auto", "--port", str(head.port))
        wait_until(lambda: "Ready in" in head.said("manta"), START_S, "it serves", lambda: head.said("manta"))
        assert head.said("manta").count(f"{GUARD_VARIABLE}={RAY_ENVIRONMENT[GUARD_VARIABLE]}") == (not guard)
        served.send_signal(signal.SIGINT)
        assert served.wait(STOP_S) == 0, head.said("manta")
