"""What Ray knows of this host."""

import ray


def interface_for_peers() -> str | None:
    """Returns this host's address as other hosts of the Ray cluster see it; None when Ray is on loopback only."""
    address = ray.util.get_node_ip_address()
    return None if address.startswith("127.") or address == "::1" else address
