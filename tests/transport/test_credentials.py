"""Credentials: which keys count, and a change of them under links and sessions that run."""

import threading

import pytest
import torch

from tests.transport.driving import Answers, echo, expert_rows, random_rows, turn_until
from transport.base import Request
from transport.credentials import MAX_KEYS, MIN_KEY_BYTES, Credentials
from transport.loop import Loop
from transport.socket import RequestServer, SocketPeer

OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), f"0 data-plane keys were given; allowed: 1 to {MAX_KEYS}"),
        ((OLD,) * (MAX_KEYS + 1), f"{MAX_KEYS + 1} data-plane keys"),
        ((OLD, b"short"), f"a data-plane key has 5 bytes; needed: {MIN_KEY_BYTES} at least"),
        ((b"",), "has 0 bytes"),
    ],
)
def test_what_is_no_set_of_keys_is_refused_and_changes_nothing(keys: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Credentials(*keys)
    credentials, told = Credentials(OLD), list[None]()
    credentials.on_change(lambda: told.append(None))
    with pytest.raises(ValueError, match=message):
        credentials.replace(keys)
    assert credentials.keys == (OLD,)
    assert told == []


def test_no_key_is_shown() -> None:
    assert "ooo" not in repr(Credentials(OLD))
    assert "ooo" not in f"{Credentials(OLD)}"


def test_only_a_change_is_told_and_only_to_who_listens() -> None:
    credentials, told = Credentials(OLD), list[str]()
    forget_first = credentials.on_change(lambda: told.append("first"))
    credentials.on_change(lambda: told.append("second"))
    credentials.replace([OLD])
    assert told == []
    credentials.replace([NEW, OLD])
    assert told == ["first", "second"]
    forget_first()
    forget_first()
    credentials.replace([NEW])
    assert told == ["first", "second", "second"]


@pytest.mark.parametrize("server_first", [False, True])
def test_a_key_is_changed_under_calls_and_none_is_lost_before_the_old_one_goes(
    loop: Loop, server_first: bool, seed: int
) -> None:
    """The three steps of a change reach the two ends one after the other; a call is made after each."""
    ends = server_keys, client_keys = Credentials(OLD), Credentials(OLD)
    server = RequestServer(loop, "echo", server_keys, None, echo)
    peer = SocketPeer(loop, server.address, client_keys, "node")
    turn_until(lambda: peer.ready, loop)
    for keys in ([OLD, NEW], [NEW, OLD], [NEW]):
        for credentials in ends if server_first else ends[::-1]:
            thread = threading.Thread(target=credentials.replace, args=(keys,))  # as the control plane does it
            thread.start()
            thread.join()
            for _ in range(3):  # both ends hear of it
                loop.run_once(0.01)
            turn_until(lambda: peer.ready, loop)
            rows_TD, answers = random_rows(2, 4, seed), Answers()
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
            turn_until(lambda now=answers: bool(now), loop)
            assert isinstance(answers[0], torch.Tensor)
    peer.close()
    server.close()


def test_who_holds_a_withdrawn_key_is_sent_away(loop: Loop, seed: int) -> None:
    held: list[Request] = []
    server_keys = Credentials(OLD)
    server = RequestServer(loop, "echo", server_keys, None, held.extend)
    thief = SocketPeer(loop, server.address, Credentials(OLD), "node")
    turn_until(lambda: thief.ready, loop)
    answers: Answers = []
    thief.call(expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed), answers.append)
    turn_until(lambda: bool(held), loop)
    server_keys.replace([NEW])
    turn_until(lambda: server.num_callers == 0 and bool(answers), loop)
    for _ in range(5):
        loop.run_once(0.05)
    assert not thief.ready
    assert server.num_callers == 0
    thief.close()
    server.close()
