"""Runs in the Router: gating, dispatch plan, combine, replica choice."""

import manta_imports as manta_imports
