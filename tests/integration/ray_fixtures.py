"""One Ray cluster for all Ray tests of a session, and one service with two of everything on it.

A plugin of tests/conftest.py: each conftest that held these fixtures would make a cluster of its own. What takes long
to import is imported where it is used, because every test run loads this file.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.ray_service import RayService
    from tests.oracle import Oracle

WINDOW = 16
VOCABULARY = 320
MAX_CONTEXT = 512
LAYOUT = {"hidden_size": 64, "ffn_size": 96, "num_experts": 4, "window": WINDOW, "max_context": MAX_CONTEXT}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, seed: int) -> "tuple[Path, Oracle]":
    """A random model with a window, and what transformers says of it."""
    from tests.oracle import Oracle
    from tests.random_checkpoint import make_checkpoint

    directory = tmp_path_factory.mktemp("ray") / "model"
    return directory, Oracle(make_checkpoint(directory, seed=seed, vocab_size=VOCABULARY, **LAYOUT))


@pytest.fixture(scope="session")
def ray_port() -> Iterator[int]:
    """A small Ray of this session's own; gives the port that its Serve listens on."""
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 - the name is Ray's
    from cluster.ray_session import start_local_ray, stop_local_ray
    from tests.integration.ray_service import free_port

    start_local_ray(num_cpus=2)
    yield free_port()
    stop_local_ray()


@pytest.fixture(scope="session")
def alpha(ray_port: int, checkpoint: "tuple[Path, Oracle]") -> "Iterator[RayService]":
    """A service with two gateways, routers and nodes; shard 0 has two replicas, shard 1 has one."""
    from tests.integration.ray_service import running_service

    two = {"replicas": 2}
    sections = {"api": two, "router": two, "attention": two, "experts": {"overrides": {0: two}}}
    with running_service(checkpoint[0], ray_port, "alpha", **sections) as service:
        yield service
