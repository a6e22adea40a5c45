"""The keyed handshake: both sides prove that they know the key, and nothing else passes for a proof."""

import pytest

from protos.dispatch_pb2 import Header, Hello, LayerRows
from transport.errors import HandshakeError
from transport.handshake import NONCE_BYTES, ClientHandshake, ServerHandshake

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def test_both_sides_end_up_sure_of_each_other() -> None:
    client, server = ClientHandshake(KEY, "router"), ServerHandshake(KEY)
    challenge = server.receive(client.start())
    assert challenge is not None
    assert not server.done
    proof = client.receive(challenge)
    assert client.done
    assert server.receive(proof) is None
    assert server.done
    assert server.role == "router"


def test_the_key_is_in_no_message() -> None:
    client, server = ClientHandshake(KEY, "router"), ServerHandshake(KEY)
    first = client.start()
    challenge = server.receive(first)
    assert challenge is not None
    messages = [first, challenge, client.receive(challenge)]
    assert all(KEY not in message.SerializeToString() for message in messages)


def test_the_client_refuses_a_server_with_another_key() -> None:
    client, server = ClientHandshake(KEY, "router"), ServerHandshake(OTHER_KEY)
    challenge = server.receive(client.start())
    assert challenge is not None
    with pytest.raises(HandshakeError, match="does not know this service's key"):
        client.receive(challenge)
    assert not client.done


def test_the_server_refuses_a_client_with_another_key() -> None:
    """A client that goes on although the server's proof is wrong for it gets no further."""
    client, server = ClientHandshake(OTHER_KEY, "router"), ServerHandshake(KEY)
    challenge = server.receive(client.start())
    assert challenge is not None
    lenient = ServerHandshake(OTHER_KEY)  # what the client would like to hear
    answer = lenient.receive(client.start())
    assert answer is not None
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(client.receive(answer))
    assert not server.done


def test_the_servers_own_proof_cannot_be_sent_back_to_it() -> None:
    client, server = ClientHandshake(KEY, "router"), ServerHandshake(KEY)
    challenge = server.receive(client.start())
    assert challenge is not None
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(Header(hello=Hello(proof=challenge.hello.proof)))


def test_a_proof_from_another_connection_is_worth_nothing() -> None:
    client, server, later = ClientHandshake(KEY, "router"), ServerHandshake(KEY), ServerHandshake(KEY)
    challenge = server.receive(client.start())
    assert challenge is not None
    proof = client.receive(challenge)
    later.receive(client.start())
    with pytest.raises(HandshakeError, match="client does not know"):
        later.receive(proof)


@pytest.mark.parametrize("nonce", [b"", b"short", b"n" * (NONCE_BYTES + 1)])
def test_a_nonce_of_another_length_is_refused_by_both(nonce: bytes) -> None:
    with pytest.raises(HandshakeError, match="nonce"):
        ServerHandshake(KEY).receive(Header(hello=Hello(nonce=nonce)))
    with pytest.raises(HandshakeError, match="nonce"):
        ClientHandshake(KEY, "router").receive(Header(hello=Hello(nonce=nonce, proof=b"p" * 32)))


def test_nothing_but_a_handshake_is_taken_first() -> None:
    with pytest.raises(HandshakeError, match="before the handshake"):
        ServerHandshake(KEY).receive(Header(layer_rows=LayerRows(layer=1)))
