"""What a benchmark ran on, for its JSON."""

import os
import platform

from transport.cores import available_cores


def machine() -> dict[str, object]:
    """Returns the machine's figures, and how loaded it is at this moment."""
    return {
        "processors": available_cores(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
