"""Reads Hugging Face Mixtral checkpoints: each process the tensors that it needs, under one set of names."""

import manta_imports as manta_imports
