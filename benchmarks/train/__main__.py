"""See `command.py`."""

import sys

from benchmarks.train.command import main

if __name__ == "__main__":
    sys.exit(main())
