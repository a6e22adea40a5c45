"""GPUs that a cluster has and a service file does not use: said at the start, for all works without them too. Pure."""

import math

from cluster.spec import ServiceSpec

NODE_SHARE = 0.1  # of a GPU that a node shares with experts: its weights are few beside theirs
RAY_UNITS = 10_000  # of one GPU: Ray counts in these


def unused_gpus(num_gpus: float, spec: ServiceSpec, num_experts: int) -> str | None:
    """Returns what to say of a cluster's GPUs, with the lines that would use them; None if every part does.

    Args:
        num_gpus: Of the whole cluster, as Ray counts them.
        num_experts: Of the checkpoint.
    """
    experts = spec.experts
    on_gpus = {
        "attention nodes": spec.attention.num_gpus > 0,
        "experts": experts.num_gpus > 0 or any(one.num_gpus for one in experts.overrides.values()),
    }
    without = [part for part, used in on_gpus.items() if not used]
    if num_gpus < 1 or not without:
        return None
    node, expert = fitting_shares(int(num_gpus), num_experts)
    lines = {"attention nodes": f"attention: {{num_gpus: {node:g}}}", "experts": f"experts: {{num_gpus: {expert:g}}}"}
    have = "1 GPU" if num_gpus == 1 else f"{num_gpus:g} GPUs"
    said = f"Ray has {have}, and {' and '.join(without)} compute on CPUs. To use GPUs, have in the service file:"
    return "\n  ".join([said, *(lines[part] for part in without)])


def fitting_shares(num_gpus: int, num_experts: int) -> tuple[float, float]:
    """Returns the shares of a GPU of an attention node and of each expert with which one of each finds room.

    >>> fitting_shares(9, 8), fitting_shares(8, 8), fitting_shares(1, 8)
    ((1.0, 1.0), (0.1, 0.9), (0.1, 0.1125))
    """
    if num_gpus > num_experts:
        return 1.0, 1.0
    on_one = math.ceil(num_experts / num_gpus)
    return NODE_SHARE, math.floor((1 - NODE_SHARE) / on_one * RAY_UNITS) / RAY_UNITS
