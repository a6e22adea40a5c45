"""The AttentionNode Serve deployment: loads the dense model, then serves on the data plane in a thread of its own."""

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
    from attention.node import NodeServer


@dataclass(frozen=True)
class NodeDeploymentSettings:
    """What the service file says about attention nodes, resolved; None means auto.

    Args:
        config: The checkpoint's, with the service's window.
        dtype: `float32` or `bfloat16`.
        device: `cpu` or `cuda`.
        gpu_share: How much of the GPU is this node's, if it has one.
        max_context: Positions of a sequence, prompt and output together.
    """

    directory: Path
    config: MixtralConfig
    dtype: str
    device: str
    gpu_share: float
    max_context: int
    cache_tokens: int | None
    prefill_chunk: int | None
    max_batch_tokens: int | None
    max_sequences: int
    max_queued: int
    recovery_timeout_s: float
    request_timeout_s: float
    answer_timeout_s: float = ANSWER_TIMEOUT_S


class NodePart:
    """Embedding, attention, norms, LM head and sampling, with the rolling cache of the sequences it serves."""

    async def __init__(self, settings: NodeDeploymentSettings, join: Join) -> None:
        membership = join()
        self._server = server = _load(settings, membership)
        self._part = Part("node", server, membership)
        await self._part.start()

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: The engine's thread has died; Serve then replaces this replica.
        """
        self._part.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, if the number of nodes follows the load."""
        return self._server.load()

    def __del__(self) -> None:
        if hasattr(self, "_part"):  # else it was not loaded
            self._part.leave()


# Kept by name: see router/deployment.py.
AttentionNode = serve.deployment(name="AttentionNode")(NodePart)


def _load(settings: NodeDeploymentSettings, membership: Membership) -> "NodeServer":
    import torch

    from attention.dense import DenseModel
    from attention.node import NodeServer
    from attention.sizing import NodeSettings, batch_tokens, make_cache
    from attention.warming import rehearse, warm_up
    from checkpoint.reader import CheckpointReader
    from checkpoint.weights import read_attention_weights
    from model.dtypes import torch_dtype
    from model.huge_pages import use_huge_pages

    torch.set_num_threads(1)
    config, device, dtype = settings.config, torch.device(settings.device), torch_dtype(settings.dtype)
    node = NodeSettings(
        window=config.window,
        max_context=settings.max_context,
        cache_tokens=settings.cache_tokens,
        prefill_chunk=settings.prefill_chunk,
        max_batch_tokens=batch_tokens(settings.max_batch_tokens, settings.device, settings.max_sequences),
        max_sequences=settings.max_sequences,
        max_queued=settings.max_queued,
    )
    weights = read_attention_weights(CheckpointReader(settings.directory), config, dtype)
    model = DenseModel(config, weights, device)
    del weights
    use_huge_pages()
    if device.type == "cuda":
        rehearse(model, node, dtype)
    cache = make_cache(node, config, dtype, device, settings.gpu_share)
    warm_up(model, cache, node)
    return NodeServer(
        model,
        cache,
        node,
        membership.credentials(),
        membership.tcp_host(),
        settings.recovery_timeout_s,
        settings.request_timeout_s,
        settings.answer_timeout_s,
    )
