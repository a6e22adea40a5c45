"""The keyed handshake: both sides prove that they know the key, and nothing else passes for a proof."""

from collections.abc import Sequence

import pytest

from protos.dispatch_pb2 import Header, Hello, LayerRows
from transport.credentials import MAX_KEYS, Credentials, key_id
from transport.errors import HandshakeError
from transport.handshake import MAX_HELLO_BYTES, NONCE_BYTES, ClientHandshake, ServerHandshake

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
CREDENTIALS, OTHERS = Credentials(KEY), Credentials(OTHER_KEY)


def test_both_sides_end_up_sure_of_each_other() -> None:
    client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(CREDENTIALS)
    challenge = server.receive(client.start())
    assert challenge is not None
    assert not server.done
    proof = client.receive(challenge)
    assert client.done
    assert server.receive(proof) is None
    assert server.done
    assert server.role == "router"


def test_the_key_is_in_no_message() -> None:
    client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(CREDENTIALS)
    first = client.start()
    challenge = server.receive(first)
    assert challenge is not None
    messages = [first, challenge, client.receive(challenge)]
    assert all(KEY not in message.SerializeToString() for message in messages)


def knows_the_name_of(credentials: Credentials, other: Credentials) -> Credentials:
    """The credentials of somebody who offers (or finds) the ids of keys which he does not know."""

    class Liar(Credentials):
        def find(self, offered: Sequence[bytes]) -> bytes | None:
            return credentials.keys[0]

    return Liar(*other.keys)


def test_the_client_refuses_a_server_with_another_key() -> None:
    client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(knows_the_name_of(OTHERS, CREDENTIALS))
    challenge = server.receive(client.start())
    assert challenge is not None
    with pytest.raises(HandshakeError, match="does not know a key of this service"):
        client.receive(challenge)
    challenge.hello.key_ids[:] = [key_id(KEY)]
    with pytest.raises(HandshakeError, match="does not know a key of this service"):
        client.receive(challenge)
    assert not client.done


def test_the_server_refuses_a_client_with_another_key() -> None:
    server = ServerHandshake(CREDENTIALS)
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(ClientHandshake(OTHERS, "router").start())
    assert not server.done


def test_the_server_refuses_a_client_that_knows_only_the_id_of_its_key() -> None:
    """A client that goes on although the server's proof is wrong for it gets no further."""
    client, server = ClientHandshake(OTHERS, "router"), ServerHandshake(CREDENTIALS)
    first = client.start()
    lenient = ServerHandshake(OTHERS)  # what the client would like to hear
    answer = lenient.receive(first)
    assert answer is not None
    first.hello.key_ids[:] = [key_id(KEY)]
    assert server.receive(first) is not None
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(client.receive(answer))
    assert not server.done


@pytest.mark.parametrize("role", ["", "root", "router\nERROR forged", "\x1b[2Jnode", "r" * 300])
def test_a_role_that_is_none_is_refused_and_shown_escaped(role: str) -> None:
    first = ClientHandshake(CREDENTIALS, "router").start()
    first.hello.role = role
    with pytest.raises(HandshakeError) as refused:
        ServerHandshake(CREDENTIALS).receive(first)
    assert str(refused.value) == f"a client calls itself {role!r}; allowed: gateway, node, router"
    assert str(refused.value).isprintable()


def test_the_role_is_part_of_what_is_proved() -> None:
    client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(CREDENTIALS)
    first = client.start()
    first.hello.role = "node"
    challenge = server.receive(first)
    assert challenge is not None
    with pytest.raises(HandshakeError, match="does not know a key"):
        client.receive(challenge)


@pytest.mark.parametrize(
    ("client_keys", "server_keys", "taken"),
    [
        ([KEY], [KEY, OTHER_KEY], KEY),
        ([OTHER_KEY, KEY], [KEY], KEY),
        ([OTHER_KEY, KEY], [KEY, OTHER_KEY], OTHER_KEY),
        ([OTHER_KEY], [KEY, OTHER_KEY], OTHER_KEY),
    ],
)
def test_the_clients_best_key_that_the_server_has_is_taken(
    client_keys: list[bytes], server_keys: list[bytes], taken: bytes
) -> None:
    client, server = ClientHandshake(Credentials(*client_keys), "node"), ServerHandshake(Credentials(*server_keys))
    challenge = server.receive(client.start())
    assert challenge is not None
    assert server.receive(client.receive(challenge)) is None
    assert client.key == server.key == taken


def test_a_key_that_is_withdrawn_before_it_is_proved_is_worth_nothing() -> None:
    credentials = Credentials(KEY)
    client, server = ClientHandshake(CREDENTIALS, "node"), ServerHandshake(credentials)
    challenge = server.receive(client.start())
    assert challenge is not None
    credentials.replace([OTHER_KEY])
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(client.receive(challenge))


def test_a_client_takes_no_key_that_it_has_given_up_since_it_offered_it() -> None:
    credentials = Credentials(KEY, OTHER_KEY)
    client, server = ClientHandshake(credentials, "node"), ServerHandshake(CREDENTIALS)
    challenge = server.receive(client.start())
    assert challenge is not None
    credentials.replace([OTHER_KEY])
    with pytest.raises(HandshakeError, match="does not know a key"):
        client.receive(challenge)
    assert not client.done


def test_offering_many_keys_is_refused() -> None:
    first = ClientHandshake(CREDENTIALS, "node").start()
    first.hello.key_ids.extend([b"x" * 8] * MAX_KEYS)
    with pytest.raises(HandshakeError, match=f"offers {MAX_KEYS + 1} keys; allowed: {MAX_KEYS}"):
        ServerHandshake(CREDENTIALS).receive(first)


def test_the_longest_hello_is_within_its_limit() -> None:
    keys = [bytes([number]) * 32 for number in range(MAX_KEYS)]
    client, server = ClientHandshake(Credentials(*keys), "gateway"), ServerHandshake(Credentials(*keys))
    challenge = server.receive(client.start())
    assert challenge is not None
    messages = [client.start(), challenge, client.receive(challenge)]
    assert max(len(message.SerializeToString()) for message in messages) <= MAX_HELLO_BYTES // 2


def test_both_sides_derive_the_same_keys_for_sealing_and_each_connection_others() -> None:
    seen: set[bytes] = set()
    for _ in range(3):
        client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(CREDENTIALS)
        challenge = server.receive(client.start())
        assert challenge is not None
        server.receive(client.receive(challenge))
        assert client.seal_keys() == server.seal_keys()
        seen.update(client.seal_keys())
    assert len(seen) == 6


def test_the_servers_own_proof_cannot_be_sent_back_to_it() -> None:
    client, server = ClientHandshake(CREDENTIALS, "router"), ServerHandshake(CREDENTIALS)
    challenge = server.receive(client.start())
    assert challenge is not None
    with pytest.raises(HandshakeError, match="client does not know"):
        server.receive(Header(hello=Hello(proof=challenge.hello.proof)))


def test_a_proof_from_another_connection_is_worth_nothing() -> None:
    client, server, later = (
        ClientHandshake(CREDENTIALS, "router"),
        ServerHandshake(CREDENTIALS),
        ServerHandshake(CREDENTIALS),
    )
    challenge = server.receive(client.start())
    assert challenge is not None
    proof = client.receive(challenge)
    later.receive(client.start())
    with pytest.raises(HandshakeError, match="client does not know"):
        later.receive(proof)


@pytest.mark.parametrize("nonce", [b"", b"short", b"n" * (NONCE_BYTES + 1)])
def test_a_nonce_of_another_length_is_refused_by_both(nonce: bytes) -> None:
    with pytest.raises(HandshakeError, match="nonce"):
        ServerHandshake(CREDENTIALS).receive(Header(hello=Hello(nonce=nonce)))
    with pytest.raises(HandshakeError, match="nonce"):
        ClientHandshake(CREDENTIALS, "router").receive(Header(hello=Hello(nonce=nonce, proof=b"p" * 32)))


def test_nothing_but_a_handshake_is_taken_first() -> None:
    with pytest.raises(HandshakeError, match="before the handshake"):
        ServerHandshake(CREDENTIALS).receive(Header(layer_rows=LayerRows(layer=1)))
