"""Sockets of these tests live in a folder of their own, with a path short enough for the kernel."""

import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from transport.loop import Loop


@pytest.fixture(autouse=True, scope="session")
def socket_folder() -> Iterator[Path]:
    get_temp_dir()  # multiprocessing keeps the one it finds first: not this one, which goes earlier
    folder = Path(tempfile.mkdtemp(prefix="mt-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()
