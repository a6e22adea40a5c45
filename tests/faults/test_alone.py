"""The controller and the expert actors are all that is left: they wait for the others as long as Serve wants them."""

import time
from collections.abc import Iterator

import pytest

from cluster.application import wanted_by_serve
from tests.faults.changing import Changes
from tests.faults.conftest import Files
from tests.faults.parts import MEMBERS, RECOVERY_S, processes, wait_whole, wanted
from tests.integration.ray_service import RayService, complete, kill, running_service, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

PROMPT = [5, 6, 7]
NUM_TOKENS = 8
LIMITS = {"orphan_timeout_s": 3}


@pytest.fixture
def lonely(ray_port: int, files: Files) -> Iterator[RayService]:
    """A service of one of everything that soon feels alone."""
    with running_service(files.directory, ray_port, "lonely", limits=LIMITS) as running:
        yield running
        files.put_back()


@pytest.mark.full
def test_what_was_applied_stays_while_all_gateways_nodes_and_routers_are_away(
    lonely: RayService, files: Files, ray_port: int, oracle: Oracle
) -> None:
    """As after the loss of their host, until there is another one: only the controller knows of the change."""
    Changes(lonely, files.directory, ray_port, limits=LIMITS).make(experts={"replicas": 2})
    wait_whole(lonely)
    before, goal, controller = processes(lonely), wanted(lonely), lonely.status()["controller"]
    files.take_all_away()
    for pid in (pid for part in MEMBERS for pid in before[part]):
        kill(pid)

    def noted() -> list[bool]:
        return [event["failed"] for event in lonely.status()["events"] if "staying" in event["text"]]

    wait_until(lambda: bool(noted()), RECOVERY_S, "it asks Serve", lonely.show)
    time.sleep(3 * LIMITS["orphan_timeout_s"])  # it asks again
    assert noted() == [False], "once, and nothing has failed"
    assert not any(lonely.status()[part] for part in MEMBERS)
    files.put_back()
    wait_whole(lonely)
    assert (wanted(lonely), lonely.status()["controller"]) == (goal, controller)
    assert processes(lonely)["experts"] == before["experts"]
    oracle.check_greedy(PROMPT, complete(lonely.client(), PROMPT, NUM_TOKENS).token_ids)


def test_whether_serve_has_an_application_of_a_service(alpha: RayService) -> None:
    assert wanted_by_serve(alpha.name)
    assert not wanted_by_serve("another")
