"""See `command.py`."""

import sys

from benchmarks.hop.command import main

if __name__ == "__main__":
    sys.exit(main())
