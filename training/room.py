"""What room there is for a run's workers; waits until there is enough, before Ray Train starts them.

Ray Train itself goes by what hosts have, not by what is free there, and while it waits for a placement, or for hosts,
it hears no Ctrl-C but the third: its controller is an actor whose event loop stands still.
"""

import time
from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from training.workers import Workers

POLL_S = 1  # Ray counts whole seconds
REMEDY = "end what holds the rest, add hosts, or change parallel.workers, num_cpus or num_gpus, and start again"


class NoRoom(RuntimeError):
    """There is no room for a run's workers; says for what, and what is free."""


def wait_for_room(workers: Workers, on_waiting: Callable[[str], None] = lambda why: None) -> None:
    """Waits until there is room for the fewest workers of a run; asks Ray's autoscaler for it, where there is one.

    Args:
        on_waiting: Called once, if there is none yet.

    Raises:
        NoRoom: There is none within `limits.start_timeout_s`.
    """
    deadline_s = time.monotonic() + workers.start_timeout_s
    group = placement_group([workers.resources] * workers.fewest)
    said = False
    try:
        while not group.wait(POLL_S):
            if not said:
                on_waiting(f"waiting for room for {workers.wanted}; {_free(workers)}")
                said = True
            if time.monotonic() >= deadline_s:
                raise NoRoom(f"{workers.no_room()}; {_free(workers)}; {REMEDY}")
    finally:
        remove_placement_group(group)


def num_gpus() -> float:
    """Returns the GPUs of all hosts together, taken or free."""
    return ray.cluster_resources().get("GPU", 0.0)


def num_cores() -> float:
    """Returns the CPUs of all hosts together, taken or free."""
    return ray.cluster_resources().get("CPU", 0.0)


def _free(workers: Workers) -> str:
    free, whole = ray.available_resources(), ray.cluster_resources()
    words = (f"{free.get(name, 0):g} of {whole.get(name, 0):g} {name}" for name in workers.resources)
    return f"free on all hosts together: {', '.join(words)}"
