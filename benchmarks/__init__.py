"""Each figure that the README quotes, re-runnable."""

import manta_imports as manta_imports
