"""What Manta's things are called inside a Ray cluster."""

NAMESPACE = "manta"


def controller_name(service: str) -> str:
    """Returns the actor name of a service's controller."""
    return f"{service}/controller"


def expert_name(service: str, shard: int, replica: int) -> str:
    """Returns the actor name of one replica of a shard."""
    return f"{service}/experts/{shard}/{replica}"


def key_name(service: str) -> bytes:
    """Returns the name of a service's data-plane key in Ray's internal store."""
    return f"{service}/key".encode()
