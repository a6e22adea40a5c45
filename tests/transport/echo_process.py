"""Real processes that answer calls: they echo rows, or hold every call unanswered until they are killed."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from tests.transport.driving import CREDENTIALS, echo
from transport.address import Address
from transport.base import Request
from transport.loop import Loop
from transport.socket import RequestServer

# Processes that are made anew (not copies of pytest's), but import torch only once between them.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.transport.echo_process"])


def _hold(requests: list[Request]) -> None:
    del requests


def _serve(pipe: Connection, tcp_host: str | None, holds: bool) -> None:
    torch.set_num_threads(1)
    loop = Loop()
    server = RequestServer(loop, "echo", CREDENTIALS, tcp_host, _hold if holds else echo)
    pipe.send(server.address)
    loop.run_forever()


@dataclass
class EchoProcess:
    """A child process and where it listens."""

    process: BaseProcess
    address: Address


@contextmanager
def echo_process(tcp_host: str | None = None, holds: bool = False) -> Iterator[EchoProcess]:
    """Starts a process that echoes (or, if it `holds`, never answers), and ends it afterwards."""
    here, there = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(there, tcp_host, holds), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(120.0), "the echo process did not start"
        yield EchoProcess(process, here.recv())
    finally:
        process.kill()
        process.join()
