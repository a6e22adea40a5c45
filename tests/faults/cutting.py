"""Cuts a connection in the middle of a frame. Runs in the processes of a service, by `parts.call_in`.

What is cut is a real frame: the next one that the process sends, of which the peer gets one half and then the end.
"""

import socket
from typing import Any

from protos.dispatch_pb2 import Header
from tests.faults.inside import instances
from transport.frames import EMPTY_BODY, Body, encode_head

_cut: list[int] = []  # the frames that were cut in this process, by their lengths


def cut_next_call(actor: object, role: str) -> int:
    """Cuts each connection that this process has made in this `role`, when it next sends on it; returns how many."""
    del actor
    links = [one for one in instances("transport.link", "Link") if one.up and one._role == role]
    for link in links:
        _cut_next(link, link._connection)
    return len(links)


def cut_next_answer(actor: object, role: str) -> int:
    """Cuts each connection that a `role` has made to this process, when it next sends on it; returns how many."""
    del actor
    found = instances("transport.socket", "Session")
    sessions = [one for one in found if one.role == role and not one._connection.closed]
    for session in sessions:
        _cut_next(session, session._connection)
    return len(sessions)


def lengths_of_cut_frames(actor: object) -> list[int]:
    """Returns the frames that were cut in this process so far."""
    del actor
    return list(_cut)


def _cut_next(sender: Any, connection: Any) -> None:
    def send_half(header: Header, body: Body = EMPTY_BODY, call_id: int = 0) -> bool:
        sender.send = connection.send
        frame = encode_head(header, len(body), call_id) + bytes(body)
        connection._socket.send(frame[: len(frame) // 2], socket.MSG_NOSIGNAL)
        connection._socket.shutdown(socket.SHUT_RDWR)
        _cut.append(len(frame))
        return True

    sender.send = send_half
