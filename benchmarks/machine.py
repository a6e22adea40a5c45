"""What a benchmark ran on, for its JSON."""

import os
import platform


def machine() -> dict[str, object]:
    """Returns the machine's figures, and how loaded it is at this moment."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
