"""Controllers of before versioned formats (commit 24e6333), which Ray starts again over this package.

Ray keeps an actor's class as it was when it was started. Those classes held all of the controller's work, and would do
it with what is imported of this package: end the expert actors that run, for one, whose layout has another name here.
"""

import logging
import os
import time
from typing import NoReturn

from cluster.plain import MANTA
from cluster.stored import is_stored

logger = logging.getLogger(__name__)

LOOK_S = 5.0


def hold(name: str) -> NoReturn:
    """Keeps such a controller where it is, in its beginning: it is there, and does nothing.

    If it ended, whoever serves in the foreground would take the service for stopped, and stop the rest of it. Nobody
    hears from it; commands find in Ray's store why (`cluster.teardown`). Once a command has stopped the service, it
    ends: Ray does not end the process of an actor that is killed in its beginning.
    """
    logger.error("service %s was started by a Manta of before versioned formats; Manta %s leaves it alone", name, MANTA)
    while True:
        time.sleep(LOOK_S)
        try:
            wanted = is_stored(name)
        except Exception as error:  # Ray's store is away
            logger.warning("whether service %s has been stopped is not known: %s", name, error)
            continue
        if not wanted:
            os._exit(0)
