"""TLS between hosts: who has a certificate of the authority and the key gets in, and nobody else does."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.transport.certificates import Authority, make_authority
from tests.transport.driving import Answers, echo, expert_rows, random_rows, turn_until
from tests.transport.links import LinkProxy
from transport.connection import Connection
from transport.credentials import Credentials
from transport.frames import Frame
from transport.handshake import handshake_reader
from transport.loop import Loop
from transport.socket import RequestServer, SocketPeer
from transport.tls import Tls, TlsFiles, TlsSocket

KEY = b"k" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def files(authority: Authority) -> TlsFiles:
    return authority.issue("host")


@pytest.fixture(scope="module")
def tls(files: TlsFiles) -> Tls:
    return Tls(files)


@contextmanager
def serving(loop: Loop, credentials: Credentials) -> Iterator[RequestServer]:
    server = RequestServer(loop, "expert", credentials, "127.0.0.1", echo)
    yield server
    server.close()


def peer_of(loop: Loop, server: RequestServer, credentials: Credentials) -> SocketPeer:
    return SocketPeer(loop, replace(server.address, host_id="elsewhere"), credentials, "router")


def refused(loop: Loop, server: RequestServer, credentials: Credentials) -> str:
    """Returns why a peer does not get in."""
    peer = peer_of(loop, server, credentials)
    turn_until(lambda: peer.last_error != "not connected yet", loop)
    for _ in range(5):
        loop.run_once(0.02)
        assert not peer.ready
    assert server.num_callers == 0
    peer.close()
    return peer.last_error


def test_calls_over_tls(loop: Loop, authority: Authority, tls: Tls, seed: int) -> None:
    """Small ones, and more at once than sockets hold, both ways; the two hosts have different certificates."""
    other = Tls(authority.issue("other"))
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        peer = peer_of(loop, server, Credentials(KEY, tls=other))
        turn_until(lambda: peer.ready, loop)
        sent = [random_rows(num_rows, 512, seed + num_rows) for num_rows in (1, 0, 7, 3000, 4000, 2, 5000)]
        answers: Answers = []
        for rows_TD in sent:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == len(sent), loop)
        by_size = {len(answer): answer for answer in answers if isinstance(answer, torch.Tensor)}
        assert all(torch.equal(by_size[len(rows_TD)], rows_TD) for rows_TD in sent)
        peer.close()


def test_on_one_host_nothing_of_it_is_used(loop: Loop, tls: Tls, seed: int) -> None:
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        peer = SocketPeer(loop, server.address, Credentials(KEY), "router")
        turn_until(lambda: peer.ready, loop)
        peer.close()


def test_a_certificate_without_the_key_gets_nothing(loop: Loop, tls: Tls) -> None:
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        assert "key" in refused(loop, server, Credentials(b"another service's", tls=tls))


def test_the_key_without_a_certificate_of_the_authority_gets_nothing(loop: Loop, tls: Tls, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path, "stranger")
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        assert "TLS was refused: CERTIFICATE_VERIFY_FAILED" in refused(
            loop, server, Credentials(KEY, tls=Tls(stranger.issue("his")))
        )
        # One that trusts our authority, and shows a certificate of another.
        mixed = replace(stranger.issue("mixed"), ca_file=tls.files.ca_file)
        assert refused(loop, server, Credentials(KEY, tls=Tls(mixed)))


def test_an_expired_certificate_gets_nothing(loop: Loop, authority: Authority, tls: Tls) -> None:
    expired = Tls(authority.issue("expired", days=-1))
    with serving(loop, Credentials(KEY, tls=expired)) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in refused(loop, server, Credentials(KEY, tls=tls))


def test_with_and_without_tls_refuse_each_other_in_words(
    loop: Loop, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        assert refused(loop, server, Credentials(KEY))
    with serving(loop, Credentials(KEY)) as server:
        assert refused(loop, server, Credentials(KEY, tls=tls))
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "TLS was refused: " in said
    assert "the other side speaks TLS, and this process has no certificates" in said


def test_who_stands_between_with_a_certificate_of_the_authority_gets_nothing(
    loop: Loop, authority: Authority, tls: Tls
) -> None:
    """He ends TLS on both sides and passes the keyed handshake on: it is about another certificate on each."""
    his = Tls(authority.issue("between"))
    with serving(loop, Credentials(KEY, tls=tls)) as server, socket.create_server(("127.0.0.1", 0)) as listening:
        address = replace(server.address, host_id="elsewhere", tcp_port=listening.getsockname()[1])
        peer = SocketPeer(loop, address, Credentials(KEY, tls=tls), "router")
        loop.run_once(0.1)
        accepted, _ = listening.accept()
        onward = socket.create_connection(("127.0.0.1", server.address.tcp_port))
        ends: list[str] = []
        passed: list[Frame] = []

        def pass_to(other: list[Connection]) -> object:
            def pass_on(frame: Frame) -> None:
                passed.append(frame)
                other[0].send(frame.header)

            return pass_on

        first: list[Connection] = []
        second: list[Connection] = []
        first.append(Connection(loop, his.accept(accepted), pass_to(second), ends.append, handshake_reader()))  # pyright: ignore[reportArgumentType]
        second.append(Connection(loop, his.connect(onward), pass_to(first), ends.append, handshake_reader()))  # pyright: ignore[reportArgumentType]
        turn_until(lambda: bool(ends), loop)
        assert len(passed) == 2, "the client's first message, and the server's answer, which it refuses"
        assert not peer.ready
        assert server.num_callers == 0
        peer.close()
        for connection in (*first, *second):
            connection.close()


def test_silent_connections_hold_no_tls_state_and_are_sent_away(
    loop: Loop, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.server.PROOF_TIMEOUT_S", 0.2)
    wrapped: list[object] = []
    wrap = TlsSocket._wrap  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(TlsSocket, "_wrap", lambda self: wrapped.append(self) or wrap(self))
    with serving(loop, Credentials(KEY, tls=tls)) as server:
        silent = socket.create_connection(("127.0.0.1", server.address.tcp_port))
        turn_until(lambda: server.num_unproven == 1, loop)
        turn_until(lambda: server.num_unproven == 0, loop)
        assert wrapped == []
        silent.close()


@pytest.mark.parametrize("direction", ["to server", "to client"])
def test_what_is_damaged_or_cut_on_its_way_is_asked_again(loop: Loop, tls: Tls, direction: str, seed: int) -> None:
    rows_TD = random_rows(2, 4, seed)
    credentials = Credentials(KEY, tls=tls)
    with serving(loop, credentials) as server:
        for name in ("flips", "cuts"):
            for at in (700, 1300, 1900, 2100):
                proxy = LinkProxy(loop, server.address, over_tcp=True)
                getattr(proxy.faults, name).append((direction, at))
                peer = SocketPeer(loop, proxy.address, credentials, "router")
                until_s = time.monotonic() + 20.0
                answers: Answers = []
                while not (answers and isinstance(answers[-1], torch.Tensor)):
                    assert time.monotonic() < until_s
                    turn_until(lambda: peer.ready, loop)  # noqa: B023
                    num = len(answers)
                    peer.call(expert_rows(rows_TD), rows_TD, answers.append)
                    turn_until(lambda: len(answers) > num, loop)  # noqa: B023
                assert torch.equal(answers[-1], rows_TD)
                peer.close()
                proxy.close()


def broken(files: TlsFiles, tmp_path: Path) -> list[tuple[TlsFiles, str]]:
    empty, missing = tmp_path / "empty.pem", tmp_path / "missing.pem"
    empty.write_text("")
    return [
        (replace(files, cert_file=missing), "tls.cert_file: .*missing.pem is no certificate: No such file"),
        (replace(files, cert_file=empty), "tls.cert_file: .*empty.pem is no certificate: it holds nothing between"),
        (replace(files, key_file=missing), "tls: .* are no pair: No such file"),
        (replace(files, key_file=empty), "tls: .* are no pair: "),
        (replace(files, ca_file=missing), "tls.ca_file: .*missing.pem is no certificate: No such file"),
        (replace(files, ca_file=empty), "tls.ca_file: .*empty.pem is no certificate: "),
    ]


def test_files_that_cannot_be_used_are_named(files: TlsFiles, authority: Authority, tmp_path: Path) -> None:
    for given, message in broken(files, tmp_path):
        with pytest.raises(ValueError, match=message):
            Tls(given)
    with pytest.raises(ValueError, match="are no pair"):
        Tls(replace(files, key_file=authority.issue("third").key_file))
    with pytest.raises(ValueError, match="the key is encrypted"):
        Tls(authority.issue("hidden", password=b"secret"))
