"""The small maths and the configuration of a model, shared by every role: norms, rotary embedding, linear kernels."""

import manta_imports as manta_imports
