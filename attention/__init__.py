"""Runs in the AttentionNode: attention, rolling cache, scheduler, engine, sampling."""

import manta_imports as manta_imports
