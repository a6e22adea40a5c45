"""Removes one of two fake hosts in the middle of a run that takes one or two workers. A program: it has Ray for itself.

python -m tests.integration.elastic_training FOLDER
"""

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.names import NAMESPACE
from cluster.ray_session import RAY_ENVIRONMENT, WORKER_ENVIRONMENT
from cluster.ray_token import demand_token
from tests.faults.host_loss import start_hosts
from tests.integration.ray_service import wait_until
from tests.integration.training_runs import TRAINING_S, same_curve, spec_of, undisturbed, write_files
from training.metrics import read_metrics
from training.running import Watch, run_training

NAME = "elastic"
STEPS = 120  # a lost host takes a while to be noticed


class Removing(threading.Thread):
    """Removes a host once the run has made some steps. (The run itself needs the main thread.)"""

    def __init__(self, cluster: Cluster, host: Any, folder: Path) -> None:
        super().__init__()
        self._cluster = cluster
        self._host = host
        self._folder = folder
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            wait_until(lambda: len(read_metrics(self._folder)) > 30, TRAINING_S, "the run is on its way")
            self._cluster.remove_node(self._host, allow_graceful=False)
        except BaseException as error:
            self.error = error


def main(folder: Path) -> None:
    """Fails if the run does not end with one worker and with the curve of an undisturbed run."""
    os.environ.update({**RAY_ENVIRONMENT, **WORKER_ENVIRONMENT})
    demand_token()
    write_files(folder)
    parallel = {"workers": {"min": 1, "max": 2}, "expert_parallel": 2, "num_cpus": 2}  # a host has two
    sections: dict[str, dict[str, Any]] = {"schedule": {"steps": STEPS}, "limits": {"start_timeout_s": 20}}
    spec = spec_of(folder, NAME, parallel=parallel, **sections)  # a checkpoint every ten steps
    run_folder = folder / "storage" / NAME
    with tempfile.TemporaryDirectory(prefix="mh") as ray_folder:
        cluster, hosts = start_hosts(ray_folder)
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            removing = Removing(cluster, next(iter(hosts.values())), run_folder)
            removing.start()
            finished = run_training(spec, Watch())
            removing.join()
        finally:
            ray.shutdown()
            cluster.shutdown()
    if removing.error is not None:
        raise removing.error
    records = read_metrics(run_folder)
    shapes = [(one["workers"], one["expert_parallel"]) for one in records]
    assert (shapes[0], shapes[-1]) == ((2, 2), (1, 1)), shapes
    same_curve(records, undisturbed(spec, finished, folder / "alone"))
    print(f"{shapes.count((2, 2))} steps by two workers, {shapes.count((1, 1))} by the one that was left")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
