"""What Manta's things are called inside a Ray cluster."""

NAMESPACE = "manta"


def controller_name(service: str) -> str:
    """Returns the actor name of a service's controller."""
    return f"{service}/controller"


def experts_prefix(service: str) -> str:
    """Returns what the name of every expert actor of a service starts with."""
    return f"{service}/experts/"


def expert_name(service: str, shard: int, replica: int) -> str:
    """Returns the actor name of one replica of a shard."""
    return f"{experts_prefix(service)}{shard}/{replica}"


def group_name(service: str) -> str:
    """Returns the name of the placement group that holds a service's expert actors."""
    return f"{NAMESPACE}/{service}/experts"


def key_name(service: str) -> bytes:
    """Returns the name of a service's data-plane key in Ray's internal store."""
    return f"{service}/key".encode()
