"""The disturbance that changes how many replicas a part of a service has, while it runs."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.faults.disturbances import DisturbanceError
from benchmarks.faults.footprint import Footprints
from benchmarks.faults.kill import Observed
from cluster.lifecycle import Progress, apply, plan
from cluster.spec import ServiceSpec, spec_from_dict

FIELDS = {"experts": "experts.replicas", "routers": "router.replicas", "nodes": "attention.replicas"}
ADDRESS = "auto"


class Resize:
    """Makes a part have another number of replicas, as `manta apply` does, and waits until it has.

    Args:
        part: One of FIELDS.
        spec: The service's file, whose other fields stay.
        footprints: Takes down what the service's processes hold, each time that a part is back to its first size.
    """

    def __init__(
        self, part: str, num_replicas: int, spec: ServiceSpec, observed: Observed, footprints: Footprints
    ) -> None:
        field = FIELDS[part]
        self.name = f"resize {part}"
        self.note = f"{field}: {num_replicas}"
        self._observed = observed
        self._footprints = footprints
        self._spec = spec_from_dict(spec.model_dump(), {field: num_replicas})
        self._first_size = self._spec == spec
        self._work: asyncio.Task[None] | None = None

    async def do(self) -> float:
        """Starts the change; see `Disturbance`."""
        self._work = asyncio.create_task(asyncio.to_thread(_apply, self._spec))
        return time.perf_counter()

    async def wait_until_over(self) -> float:
        """Returns when the change was made; see `Disturbance`."""
        assert self._work is not None, "`do` comes first"
        try:
            await asyncio.wait_for(self._work, self._observed.recovery_timeout_s)
        except (ValueError, RuntimeError, ConnectionError) as error:
            raise DisturbanceError(str(error)) from error
        except TimeoutError:
            raise DisturbanceError(f"not made within {self._observed.recovery_timeout_s:g} s") from None
        over_s = time.perf_counter()
        if self._first_size:
            self._footprints.take(await self._observed.serving())
        return over_s


def resizes(parts: Sequence[str], spec: ServiceSpec, observed: Observed, footprints: Footprints) -> list[Resize]:
    """For each part one replica more, and back."""
    first = {"experts": spec.experts.replicas, "routers": spec.router.replicas, "nodes": spec.attention.replicas}
    make = partial(Resize, spec=spec, observed=observed, footprints=footprints)
    return [make(part, first[part].num + more) for part in parts for more in (1, 0)]


def _apply(spec: ServiceSpec) -> None:
    apply(plan(spec, ADDRESS), ADDRESS, _ignore)


def _ignore(progress: Progress) -> None:
    del progress
