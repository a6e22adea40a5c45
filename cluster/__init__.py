import manta_imports as manta_imports
