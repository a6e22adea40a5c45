"""Where the workers of a Ray job look for modules."""

import os
import site

from ray.job_config import JobConfig

from manta_imports import ROOT, shadows


class OwnJob(JobConfig):
    """A job whose workers import the very packages that this process has, wherever it was started.

    Ray puts the folder that a driver runs in, and that of its script, first on the path of the job's workers, where a
    `model/` or a `training/` would be imported instead of ours.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=first_on_path())

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # what Ray asks before it adds those folders


def first_on_path() -> list[str]:
    """Returns what comes first on the workers' path, as it is on this host.

    Nothing, if our packages are installed where every process finds them: everything else that is installed there would
    come before `PYTHONPATH` too.
    """
    environment = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = ROOT in map(os.path.realpath, site.getsitepackages())
    return [] if installed and not shadows([*filter(None, environment)]) else [ROOT]
