"""How many ranks a run has, and what each of them needs. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """The ranks of a run.

    Args:
        fewest, most: How many; if they differ, Ray Train takes as many as there is room for.
        expert_parallel: Ranks that hold one set of experts; where the number of ranks is not fixed, at most so many.
        num_cpus, num_gpus: What one of them sets aside.
        max_failures: How often the ranks are started again after one of them died, or could not be placed.
        start_timeout_s: How long they may take to be placed, each time.
        collective_timeout_s: How long one of them waits for the others.
    """

    fewest: int = 1
    most: int = 1
    expert_parallel: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    max_failures: int = 3
    start_timeout_s: float = 300
    collective_timeout_s: float = 300

    @property
    def resources(self) -> dict[str, float]:
        """What one of them sets aside, as Ray names it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})

    @property
    def wanted(self) -> str:
        """What the fewest of them need, in words.

        >>> Workers(2, 4, num_cpus=0.5, num_gpus=1).wanted
        '2 workers with 0.5 CPU and 1 GPU each'
        """
        each = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        return f"{self.fewest} worker{'s' * (self.fewest != 1)} with {each}{' each' * (self.fewest != 1)}"

    def unused_gpus(self, num_gpus: float) -> str | None:
        """Returns what to say of a cluster's GPUs that no worker uses; None if they do, or there are none.

        >>> Workers().unused_gpus(0), Workers(num_gpus=1).unused_gpus(8)
        (None, None)
        """
        if self.num_gpus or num_gpus < 1:
            return None
        have = "1 GPU" if num_gpus == 1 else f"{num_gpus:g} GPUs"
        return f"Ray has {have}, and workers compute on CPUs; with parallel: {{num_gpus: 1}} each has one"

    def no_room(self) -> str:
        """Says that there was none in time."""
        return f"no room within {self.start_timeout_s:g} s (limits.start_timeout_s) for {self.wanted}"
