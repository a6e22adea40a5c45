"""Makes imports of Manta's packages find Manta's: their names are common words, and other folders may come first.

Python puts the folder of `python -m` first on `sys.path`, Ray the one that a driver runs in, and `PYTHONPATH` comes
before what is installed; an editable install even comes after folders that are no packages. Whoever keeps a `model/` or
a `training/` there would get a mix of both. Each of our packages imports this module, whose name nobody else has,
before anything else (docs/decisions/018-names-of-packages.md).
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def _folder_of(path: str) -> str:
    """Returns the folder that a file or folder lies in; where it is a link, the folder of the link itself.

    Installers may make files links into a store of theirs, and not the folders around them.
    """
    return os.path.realpath(os.path.dirname(os.path.abspath(path)))


ROOT = _folder_of(__file__)
PACKAGES = (
    "attention",
    "benchmarks",
    "checkpoint",
    "cluster",
    "experts",
    "manta",
    "model",
    "protos",
    "router",
    "serving",
    "spec",
    "training",
    "transport",
)


class OwnPackages:
    """Finds our packages beside this file, and leaves everything else to other finders."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return PathFinder.find_spec(fullname, [ROOT], target) if fullname in PACKAGES else None


def shadows(path: Sequence[str]) -> dict[str, str]:
    """Returns which of our packages' names are found elsewhere first, and where.

    Args:
        path: Folders, as in `sys.path`.
    """
    found = {name: PathFinder.find_spec(name, path) for name in PACKAGES}
    return {name: where for name, spec in found.items() if spec is not None and (where := _place(spec)) != ROOT}


def _place(spec: ModuleSpec) -> str:
    """Returns the folder that a package, a module or a mere folder of this name lies in."""
    inside = next(iter(spec.submodule_search_locations or ()), None) or spec.origin or ""
    return _folder_of(inside)


def _check_modules() -> None:
    """Raises ImportError if somebody else's module has the name of one of ours, which cannot be imported any more."""
    for name in PACKAGES:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and _place(spec) != ROOT:
            raise ImportError(
                f"{name} was imported from {_place(spec)}, and Manta has a package of that name, in {ROOT}: one "
                "process cannot have both. Import Manta first, or give the other one another name"
            )


_check_modules()
if OwnPackages not in sys.meta_path:
    sys.meta_path.insert(0, OwnPackages)
