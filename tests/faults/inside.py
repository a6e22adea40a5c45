"""What tests run inside a service's processes, by `parts.call_in`. Imports little: the process imports it too."""

import ctypes
import gc
import os
import sys
import threading
import time
from typing import Any


def own_pid(actor: object) -> int:
    """Returns the process's id."""
    del actor
    return os.getpid()


def end_thread(actor: object, name: str) -> bool:
    """Raises SystemExit in the thread of that name, as soon as it runs Python again."""
    del actor
    thread = next(one for one in threading.enumerate() if one.name == name)
    assert thread.ident is not None
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1


def hang_thread(actor: object, module: str, name: str) -> None:
    """Makes the thread of a server of that class wait, from its next turn on, until the process ends."""
    del actor
    (server,) = instances(module, name)
    server._loop.post(lambda: time.sleep(1e6))


def num_open(actor: object) -> int:
    """Returns how many sequences a gateway or node has under way."""
    del actor
    of_gateway = [one.num_streams for one in instances("serving.nodes", "NodeGenerator")]
    return sum(of_gateway + [len(one._sequences) for one in instances("attention.engine", "Engine")])


def instances(module: str, name: str) -> list[Any]:
    """Returns every object of a class in this process, those that are hidden from the garbage collector too.

    A class is named rather than imported: a process that does not use it would stand still while it is.
    """
    kind = getattr(sys.modules.get(module), name, None)
    if kind is None:
        return []
    gc.unfreeze()
    found = [one for one in gc.get_objects() if isinstance(one, kind)]
    gc.freeze()
    return found
