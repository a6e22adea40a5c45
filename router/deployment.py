"""The Router Serve deployment: reads the gates, then serves on the data plane in a thread of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from model.config import MixtralConfig
from transport.link import ANSWER_TIMEOUT_S
from transport.membership import Join, Membership
from transport.part import Part

# Whoever builds the application imports this file and needs no torch, which takes seconds to import: only loading does.
if TYPE_CHECKING:
    from router.server import RouterServer


@dataclass(frozen=True)
class RouterDeploymentSettings:
    """What the service file says about routers, resolved.

    Args:
        dtype: `float32` or `bfloat16`.
        degrade: Whether `experts.on_missing` is `degrade`.
    """

    directory: Path
    config: MixtralConfig
    dtype: str
    recovery_timeout_s: float
    degrade: bool
    answer_timeout_s: float = ANSWER_TIMEOUT_S


class RouterPart:
    """Holds the gates; scatters rows to the experts, gathers and combines."""

    async def __init__(self, settings: RouterDeploymentSettings, join: Join) -> None:
        membership = join()
        self._server = server = _load(settings, membership)
        # Where rows may go without missing experts, a router that waits for one serves after a while.
        self._part = Part("router", server, membership, lambda: server.degraded)
        await self._part.start()

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: The router's thread has died; Serve then replaces this replica.
        """
        self._part.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, if the number of routers follows the load."""
        return self._server.load()

    def __del__(self) -> None:
        if hasattr(self, "_part"):  # else it was not loaded
            self._part.leave()


# The class keeps its name, and the deployment has another: so Serve keeps the class by name, and a replica that is
# started after the package was replaced has the new one. By `@serve.deployment` Serve would keep the class's code.
RouterReplica = serve.deployment(name="RouterReplica")(RouterPart)


def _load(settings: RouterDeploymentSettings, membership: Membership) -> "RouterServer":
    import torch

    from model.dtypes import torch_dtype
    from router.levels import load_gates
    from router.server import RouterServer

    torch.set_num_threads(1)
    return RouterServer(
        load_gates(settings.directory, settings.config, torch_dtype(settings.dtype), torch.device("cpu")),
        membership.credentials(),
        membership.tcp_host(),
        settings.recovery_timeout_s,
        settings.degrade,
        settings.answer_timeout_s,
    )
