"""Runs in Ray Train workers: mesh, MoE layer, losses, data, loop, export, extraction."""

import manta_imports as manta_imports
