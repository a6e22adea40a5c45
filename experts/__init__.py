"""Runs in the ExpertActor: SwiGLU kernels, batching, the actor."""

import manta_imports as manta_imports
