"""A node over real sockets, with a real router and real experts: tokens, cancellation, losses, bad frames."""

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attention.sizing import NodeSettings
from manta.local import LocalModel
from protos.dispatch_pb2 import Header, LayerRows
from protos.generation_pb2 import FAILED, LENGTH, Sampling, Submit
from tests.attention.node_setup import CREDENTIALS, TIMEOUT_S, Gateway, Setup, start_node
from tests.local_driver import Wish, run
from tests.random_checkpoint import make_checkpoint
from transport.connection import Connection
from transport.credentials import Credentials
from transport.frames import MAGIC, MAX_BODY_BYTES, PREFIX, encode_head
from transport.handshake import ClientHandshake

VOCABULARY = 97
WINDOW = 16
MAX_CONTEXT = 4096
SETTINGS = NodeSettings(
    WINDOW, MAX_CONTEXT, None, prefill_chunk=None, max_batch_tokens=64, max_sequences=4, max_queued=2
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(
        path, hidden_size=32, ffn_size=48, vocab_size=VOCABULARY, window=WINDOW, seed=7, with_tokenizer=False
    )
    return path


@pytest.fixture
def lonely(directory: Path) -> Iterator[Setup]:
    """A node that knows no router."""
    with start_node(directory, SETTINGS) as setup:
        yield setup


@pytest.fixture
def setup(lonely: Setup) -> Iterator[Setup]:
    """A node with one router."""
    with lonely.router() as router:
        lonely.announce(router)
        assert lonely.node.wait_ready(TIMEOUT_S)
        yield lonely


def expected(directory: Path, wishes: list[Wish]) -> list[list[int]]:
    return [outcome.tokens for outcome in run(LocalModel(directory), wishes)]


def random_wishes(count: int, seed: int) -> list[Wish]:
    rng = random.Random(seed)
    return [
        Wish(
            [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60))],
            Sampling(max_tokens=rng.randrange(1, 25), ignore_eos=True, temperature=index % 2, seed=seed + index),
        )
        for index in range(count)
    ]


def still_serves(setup: Setup) -> None:
    gateway = setup.gateway()
    gateway.submit(1, [3, 4, 5], max_tokens=3, ignore_eos=True)
    (output,) = gateway.finish(1)
    assert output.finish_reason == LENGTH
    assert [list(output.token_ids)] == expected(
        setup.directory, [Wish([3, 4, 5], Sampling(max_tokens=3, ignore_eos=True))]
    )


def test_two_gateways_get_what_the_local_path_gives(setup: Setup, seed: int) -> None:
    wishes = random_wishes(6, seed)
    gateways = [setup.gateway(), setup.gateway()]
    for index, wish in enumerate(wishes):  # both use the same ids
        fields = {field.name: value for field, value in wish.sampling.ListFields()}
        gateways[index % 2].submit(index // 2, wish.prompt, **fields)
    for index, tokens in enumerate(expected(setup.directory, wishes)):
        (output,) = gateways[index % 2].finish(index // 2)
        assert list(output.token_ids) == tokens
    setup.wait_idle()


def test_cancelled_sequences_are_freed_at_once(setup: Setup) -> None:
    gateway = setup.gateway()
    for sequence_id in range(6):  # the last two wait
        gateway.submit(sequence_id, [3, sequence_id], ignore_eos=True)
    gateway.wait(lambda: all(len(gateway.tokens(i)) > 3 for i in range(4)))
    assert setup.node.load() == {"utilization": 1.0, "queued": 0.5}
    gateway.cancel(0, 1, 2, 3, 5, 999)
    gateway.wait(lambda: len(gateway.tokens(4)) > 3)
    stopped = [gateway.tokens(i) for i in (0, 1, 2, 3, 5)]
    gateway.wait(lambda: len(gateway.tokens(4)) > 20)
    assert [gateway.tokens(i) for i in (0, 1, 2, 3, 5)] == stopped
    assert setup.node.snapshot()["running"] == 1
    gateway.cancel(4)
    setup.wait_idle()


def test_a_gateway_that_disconnects_frees_its_sequences(setup: Setup) -> None:
    leaving, staying = setup.gateway(), setup.gateway()
    for sequence_id in range(3):
        leaving.submit(sequence_id, [3, sequence_id], ignore_eos=True)
    staying.submit(1, [5, 6], ignore_eos=True, max_tokens=200)
    leaving.wait(lambda: all(leaving.tokens(i) for i in range(3)))
    leaving.link.close()
    (output,) = staying.finish(1)
    wish = Wish([5, 6], Sampling(max_tokens=200, ignore_eos=True))
    assert [list(output.token_ids)] == expected(setup.directory, [wish])
    setup.wait_idle()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"prompt": []}, "invalid_request"),
        ({"prompt": [VOCABULARY]}, "invalid_request"),
        ({"prompt": [3], "output": [2**32 - 1]}, "invalid_request"),
        ({"prompt": [3] * 5000}, "context_length"),
        ({"prompt": [3] * 100, "output": [4] * 4000}, "context_length"),
        ({"prompt": [3], "temperature": float("nan")}, "invalid_request"),
    ],
)
def test_a_refused_sequence_hears_why(setup: Setup, given: dict[str, object], code: str) -> None:
    gateway = setup.gateway()
    gateway.submit(8, **given)
    (output,) = gateway.finish(8)
    assert output.finish_reason == FAILED
    assert output.failure.code == code
    gateway.submit(9, [3], max_tokens=1)
    gateway.finish(9)
    assert gateway.num_downs == 0


def test_full_queue(setup: Setup) -> None:
    gateway = setup.gateway()
    for sequence_id in range(9):
        gateway.submit(sequence_id, [3, sequence_id], ignore_eos=True)
    refused = gateway.finish(6, 7, 8)
    assert [output.failure.code for output in refused] == ["queue_full"] * 3
    gateway.cancel(*range(6))
    setup.wait_idle()
    gateway.submit(10, [3], max_tokens=1)
    gateway.finish(10)


def raw_connection(setup: Setup) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    sock.connect(setup.node.address.unix_path)
    return sock


def wait_closed(sock: socket.socket) -> None:
    """Reads until the other side has closed."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    finally:
        sock.close()


STRANGE = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "another version": b"MNT9" + bytes(60),
    "a huge header": PREFIX.pack(MAGIC, 2**31, 0, 0),
    "a huge body": PREFIX.pack(MAGIC, 0, MAX_BODY_BYTES + 1, 0),
    "a header that does not parse": PREFIX.pack(MAGIC, 5, 0, 0) + b"\xff" * 5,
    "a message before the handshake": encode_head(Header(submit=Submit(sequence_id=1, prompt_ids=[3])), 0),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strangers_are_shown_out(setup: Setup, what: str) -> None:
    busy = setup.gateway()
    busy.submit(1, [3, 4], ignore_eos=True, max_tokens=100)
    sock = raw_connection(setup)
    sock.sendall(STRANGE[what])
    wait_closed(sock)
    assert len(busy.finish(1)[0].token_ids) == 100
    assert busy.num_downs == 0


def test_a_wrong_key_is_not_let_in(setup: Setup) -> None:
    stranger = Gateway(setup.node.address, Credentials(b"the key of another service"))
    for _ in range(20):
        stranger.loop.run_once(0.01)
    assert not stranger.link.up
    assert "key" in stranger.link.last_error
    stranger.close()
    still_serves(setup)


@pytest.mark.parametrize("what", ["not a frame", "a message for somebody else", "an empty header"])
def test_a_bad_frame_closes_only_its_connection(setup: Setup, what: str) -> None:
    other, bad = setup.gateway(), setup.gateway()
    bad.submit(1, [3, 4], ignore_eos=True)
    other.submit(1, [3, 4], ignore_eos=True, max_tokens=150)
    bad.wait(lambda: len(bad.tokens(1)) > 3)
    if what == "not a frame":
        _socket_of(bad).sendall(b"garbage that is long enough")
    elif what == "a message for somebody else":
        bad.link.send(Header(layer_rows=LayerRows(layer=1)))
    else:
        bad.link.send(Header())
    bad.wait(lambda: bad.num_downs == 1)
    assert len(other.finish(1)[0].token_ids) == 150
    assert other.num_downs == 0
    setup.wait_idle()
    bad.submit(2, [5], max_tokens=1)  # it has connected again
    bad.finish(2)


def _socket_of(gateway: Gateway) -> socket.socket:
    connection = gateway.link._connection
    assert isinstance(connection, Connection)
    return connection._socket


def test_a_frame_cut_short_harms_nobody(setup: Setup) -> None:
    """A gateway that dies in the middle of its second message: its first sequence is freed."""
    sock = raw_connection(setup)
    handshake = ClientHandshake(CREDENTIALS, "gateway")
    sock.sendall(encode_head(handshake.start(), 0))
    head = sock.recv(65536)
    size = PREFIX.unpack_from(head)[1]
    proof = handshake.receive(Header.FromString(head[PREFIX.size : PREFIX.size + size]))
    wanted = Header(submit=Submit(sequence_id=1, prompt_ids=[3, 4], sampling=Sampling(ignore_eos=True)))
    frame = encode_head(wanted, 0)
    sock.sendall(encode_head(proof, 0) + frame + frame[:-3])
    assert sock.recv(65536), "the first sequence runs"
    sock.close()
    still_serves(setup)
    setup.wait_idle()


def test_a_gateway_that_does_not_read_is_cut_off(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("attention.node.MAX_OUTBOX_BYTES", 100_000)
    monkeypatch.setattr("transport.connection.SOCKET_BUFFER_BYTES", 100_000)
    deaf = setup.gateway()
    for sequence_id in range(4):  # more than the buffers hold: 1500 rows of scores of the whole vocabulary
        deaf.submit(sequence_id, [3] * 1500, max_tokens=0, prompt_logprobs=True, logprobs=VOCABULARY)
    setup.wait_busy()
    setup.wait_idle()
    deaf.wait(lambda: deaf.num_downs == 1)
    assert "does not read its output" in caplog.text
    still_serves(setup)


def test_without_a_router_sequences_fail_in_time_and_later_ones_work(lonely: Setup) -> None:
    gateway = lonely.gateway()
    assert not lonely.node.wait_ready(0.01)
    started_s = time.monotonic()
    gateway.submit(1, [3, 4], max_tokens=2)
    (output,) = gateway.finish(1)
    assert output.failure.code == "expert_unavailable"
    assert time.monotonic() - started_s > 0.4  # recovery_timeout_s is 0.5
    with lonely.router() as router:
        lonely.announce(router)
        assert lonely.node.wait_ready(TIMEOUT_S)
        still_serves(lonely)


def test_a_router_that_dies_is_replaced_within_a_stream(lonely: Setup) -> None:
    """The second router takes over in the middle of the sequence, which goes on as if nothing had happened."""
    gateway = lonely.gateway()
    with lonely.router() as second:
        with lonely.router() as first:
            lonely.announce(first, second)
            assert lonely.node.wait_ready(TIMEOUT_S)
            gateway.submit(1, [3, 4, 5], max_tokens=300, ignore_eos=True)
            gateway.wait(lambda: len(gateway.tokens(1)) > 5)
        (output,) = gateway.finish(1)
        wish = Wish([3, 4, 5], Sampling(max_tokens=300, ignore_eos=True))
        assert [list(output.token_ids)] == expected(lonely.directory, [wish])


def test_experts_that_die_within_a_stream_are_named(lonely: Setup) -> None:
    """Also to a sequence that comes later; one that had ended before hears nothing."""
    with lonely.router(degrade=True) as router:
        lonely.announce(router)
        assert lonely.node.wait_ready(TIMEOUT_S)
        gateway = lonely.gateway()
        gateway.submit(1, [3, 4], max_tokens=2, ignore_eos=True)
        gateway.finish(1)
        gateway.submit(2, [3, 4, 5], max_tokens=300, ignore_eos=True)
        gateway.wait(lambda: len(gateway.tokens(2)) > 5)
        lonely.kill_expert(1)
        gateway.finish(2)
        gateway.submit(3, [3, 4, 5], max_tokens=5, ignore_eos=True)
        before, within, after = gateway.finish(1, 2, 3)
        missing = list(lonely.shards[1].expert_ids)
        assert [list(output.missing_experts) for output in (before, within, after)] == [[], missing, missing]
        assert [output.finish_reason for output in (before, within, after)] == [LENGTH] * 3
        assert [len(output.token_ids) for output in (before, within, after)] == [2, 300, 5]
        assert int(str(router.snapshot()["degraded_rows_total"])) > 0


def test_while_the_experts_are_away_new_sequences_and_cancels_are_heard(lonely: Setup) -> None:
    gateway = lonely.gateway()
    gateway.submit(1, [3, 4], max_tokens=2)
    gateway.submit(2, [5, 6], max_tokens=2, ignore_eos=True)
    gateway.cancel(1)
    with lonely.router() as router:
        lonely.announce(router)
        assert len(gateway.finish(2)[0].token_ids) in (0, 2)  # the router may have come too late for it
    assert not gateway.tokens(1)
    lonely.wait_idle()


def test_a_node_that_is_stopped_says_that_it_leaves(setup: Setup) -> None:
    """To the gateways that have asked something of it; before its connections end."""
    gateway = setup.gateway()
    gateway.submit(1, [3, 4], ignore_eos=True)
    gateway.wait(lambda: len(gateway.tokens(1)) > 3)
    setup.node.stop()
    gateway.wait(lambda: gateway.num_downs == 1)
    assert gateway.num_leaves == 1


def test_figures(setup: Setup) -> None:
    before = setup.node.snapshot()
    assert before["cache_total_tokens"] == 4 * WINDOW
    still_serves(setup)
    assert setup.node.snapshot()["steps_total"] == int(str(before["steps_total"])) + 3
