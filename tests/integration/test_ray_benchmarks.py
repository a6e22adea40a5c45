"""The benchmark with kills, on the tests' own service: it finds its victims, and reports nothing amiss."""

import json
from pathlib import Path

import pytest

from benchmarks.faults.command import main
from benchmarks.faults.options import MAX_STALL_S
from tests.integration.ray_service import RayService
from tests.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.full]


def test_kills_under_load(alpha: RayService, checkpoint: tuple[Path, Oracle], tmp_path: Path, seed: int) -> None:
    out = tmp_path / "faults.json"
    sizes = ["--clients", "2", "--requests", "2", "--prompt-tokens", "20", "--output-tokens", "40", "--calm", "1"]
    service = ["--attach", alpha.name, "--url", alpha.url, "--model", str(checkpoint[0])]
    kills = ["--kill", "expert:1,router", "--max-stall", "60"]  # the expert may be the only one of its shard
    status = main([*service, *sizes, *kills, "--seed", str(seed), "--json", str(out)])
    document = json.loads(out.read_text())
    assert status == 0, document
    assert [kind["kind"] for kind in document["kinds"]] == ["expert", "router"]
    assert document["kinds"][1]["stall_s"] <= MAX_STALL_S
    assert all(one["recovered_after_s"] > 0 for one in document["disturbances"])
    calm, disturbed = document["phases"]
    assert min(calm["num_completed"], disturbed["num_completed"]) >= 4
    events = " ".join(event["text"] for event in alpha.status()["events"])
    killed = document["disturbances"][0]["note"].split(",")[0]
    assert f"({killed}) died" in events, alpha.show()
