"""Services for the fault tests, on the session's Ray."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.parts import wait_whole
from tests.integration.ray_service import RayService, running_service
from tests.oracle import Oracle


@pytest.fixture
def service(alpha: RayService) -> RayService:
    """The session's service of two of everything, whole before the test."""
    wait_whole(alpha)
    return alpha


@pytest.fixture(scope="session")
def oracle(checkpoint: tuple[Path, Oracle]) -> Oracle:
    return checkpoint[1]


@pytest.fixture(scope="session")
def solo_running(ray_port: int, checkpoint: tuple[Path, Oracle]) -> Iterator[RayService]:
    with running_service(checkpoint[0], ray_port, "solo") as running:
        yield running


@pytest.fixture
def solo(solo_running: RayService) -> RayService:
    """A service of one of everything, whole before the test."""
    wait_whole(solo_running)
    return solo_running


class Files:
    """A checkpoint, whose weights (or all of it) can be taken away and put back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._weights = directory / "model.safetensors"
        self._away = directory / "model.safetensors.away"
        self._all_away = directory.with_name("model.away")

    def take_away(self) -> None:
        self._weights.rename(self._away)

    def take_all_away(self) -> None:
        """Leaves what no gateway can start with either: without a tokenizer it would do."""
        self.directory.rename(self._all_away)
        self.directory.mkdir()
        (self.directory / "tokenizer_config.json").write_text("{")

    def put_back(self) -> None:
        if self._all_away.exists():
            shutil.rmtree(self.directory)
            self._all_away.rename(self.directory)
        if self._away.exists():
            self._away.rename(self._weights)


@pytest.fixture(scope="session")
def files(checkpoint: tuple[Path, Oracle], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The checkpoint again, for a service whose parts cannot be started when its weights are away."""
    directory = tmp_path_factory.mktemp("fragile") / "model"
    directory.mkdir()
    for path in checkpoint[0].iterdir():
        os.link(path, directory / path.name)
    return Files(directory)
