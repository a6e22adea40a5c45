"""How a controller begins: it goes on with what is stored of its service, or leaves all as it is."""

import logging
import time
from typing import Any

import ray

from cluster.control import Control
from cluster.gpus import unused_gpus
from cluster.hosts import num_gpus
from cluster.ledger import Ledger
from cluster.plain import FormatError
from cluster.refusal import Refusal
from cluster.secret import stored_data_plane_keys

logger = logging.getLogger(__name__)


def begin(name: str, service: dict[str, Any], fresh: bool) -> Control | Refusal:
    """Returns what does the work of a service's controller from now on.

    Args:
        service: What to run, packed, if nothing is stored.
        fresh: Whether the service is just being started: what is stored is of an earlier one of the same name.
    """
    fresh = fresh and not ray.get_runtime_context().was_current_actor_reconstructed
    try:
        stored_data_plane_keys(name)  # if they cannot be read, nothing else is to be written anew
        ledger = Ledger(name, service, fresh)
        if not ledger.found:
            _note_unused_gpus(ledger)
        return Control(ledger)
    except FormatError as error:
        return Refusal(name, error)


def _note_unused_gpus(ledger: Ledger) -> None:
    """`manta serve` says it too; of `serve run` and `serve deploy` only the first event can."""
    service = ledger.good
    if notice := unused_gpus(num_gpus(), service.spec, service.config.num_experts):
        logger.info("%s", notice)
        ledger.events.note(notice, failed=False, time_s=time.time())
