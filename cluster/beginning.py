"""How a controller begins: it goes on with what is stored of its service, or leaves all as it is."""

from typing import Any

import ray

from cluster.control import Control
from cluster.ledger import Ledger
from cluster.plain import FormatError
from cluster.refusal import Refusal
from cluster.secret import stored_data_plane_keys


def begin(name: str, service: dict[str, Any], fresh: bool) -> Control | Refusal:
    """Returns what does the work of a service's controller from now on.

    Args:
        service: What to run, packed, if nothing is stored.
        fresh: Whether the service is just being started: what is stored is of an earlier one of the same name.
    """
    fresh = fresh and not ray.get_runtime_context().was_current_actor_reconstructed
    try:
        stored_data_plane_keys(name)  # if they cannot be read, nothing else is to be written anew
        return Control(Ledger(name, service, fresh))
    except FormatError as error:
        return Refusal(name, error)
