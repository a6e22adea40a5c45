"""How processes talk: frames, handshake, event loop; local (in-process), socket, ray (a baseline to compare)."""

import manta_imports as manta_imports
