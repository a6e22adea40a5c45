"""Reads the YAML files that people write: sections, fields and their rules, errors in words, reference pages. Pure."""

import manta_imports as manta_imports
