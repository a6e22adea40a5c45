"""Manta's face: the command line (`manta.cli`) and the one-process service (`manta.local`). All else is internal."""

import manta_imports as manta_imports

__version__ = "0.1.0"
