"""What Manta's things are called inside a Ray cluster."""

NAMESPACE = "manta"
SERVE_NAMESPACE = "serve"  # Ray Serve's own: its replicas are actors of these names
OWN_RAY = b"own-ray"  # in Ray's internal store: Manta has started this cluster


def controller_name(service: str) -> str:
    """Returns the actor name of a service's controller."""
    return f"{service}/controller"


def experts_prefix(service: str) -> str:
    """Returns what the name of every expert actor of a service starts with."""
    return f"{service}/experts/"


def expert_name(service: str, layout: str, shard: int, replica: int) -> str:
    """Returns the actor name of one replica of a shard.

    Args:
        layout: The version of the service's expert layout (`cluster.layout`).
    """
    return f"{experts_prefix(service)}{layout}/{shard}/{replica}"


def groups_prefix(service: str) -> str:
    """Returns what the name of every placement group of a service's expert actors starts with."""
    return f"{NAMESPACE}/{experts_prefix(service)}"


def first_group_name(service: str, layout: str) -> str:
    """Returns the name of the placement group that holds the first replica of every shard."""
    return f"{groups_prefix(service)}{layout}"


def group_name(service: str, layout: str, shard: int, replica: int) -> str:
    """Returns the name of the placement group of a further replica."""
    return f"{NAMESPACE}/{expert_name(service, layout, shard, replica)}"


def key_name(service: str) -> bytes:
    """Returns the name of a service's data-plane key in Ray's internal store."""
    return f"{service}/key".encode()


def spec_name(service: str, which: str) -> bytes:
    """Returns the name of a service's `accepted` or `good` spec in Ray's internal store."""
    return f"{service}/spec/{which}".encode()
