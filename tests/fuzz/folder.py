"""A folder that a target writes its input into, as the files that a user would give."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


class Folder:
    """Files by name. Removed when the process ends; of one that libFuzzer ends, whoever started it removes it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fuzz"))
        atexit.register(shutil.rmtree, self.path, ignore_errors=True)

    def write(self, files: Mapping[str, bytes]) -> Path:
        """Makes the folder hold these files alone."""
        for path in self.path.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.path / name).write_bytes(content)
        return self.path
