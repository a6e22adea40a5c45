"""How processes talk: frames, handshake, event loop; local (in-process), socket, ray (a baseline to compare)."""
