"""Hostile clients do what they say, stop when told, and what they leave is seen."""

import asyncio
import os
import socket

import pytest

from benchmarks.client import Server
from benchmarks.faults.footprint import Footprint
from benchmarks.faults.hostile import Result, parse
from benchmarks.faults.hostile_clients import BEHAVIOURS, HostileClients, Victim
from benchmarks.faults.remains import GAUGES, Remains, gauges_in, listeners
from benchmarks.load import LoadResult, Spread
from tests.benchmarks.fake_server import FakeServer

EMPTY = dict.fromkeys(GAUGES, 0.0)


class Watching:
    """A server that takes connections and keeps what each sent, and whether it read or left."""

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        self.open = self.most_open = self.unread = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        self.received.append(got)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while piece := await reader.read(4096):
                got += piece
                if b'"stream": true}' in got:
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"data: x\n\n" * 2_000_000)
                    try:
                        await asyncio.wait_for(writer.drain(), 0.3)
                    except TimeoutError:
                        self.unread += 1
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.transport.abort()


def run(behaviour: str, number: int, seconds: float) -> tuple[Watching, HostileClients]:
    async def both() -> tuple[Watching, HostileClients]:
        watching = Watching()
        async with await asyncio.start_server(watching.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            victim = Victim(Server("fake", f"http://127.0.0.1:{port}", "m"), 4096)
            clients = HostileClients(victim, number, {behaviour: BEHAVIOURS[behaviour]}, 1)
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, over.set)
            await asyncio.wait_for(clients.run(over), seconds + 20)
            await asyncio.sleep(0.2)
            return watching, clients

    return asyncio.run(both())


@pytest.mark.parametrize(("behaviour", "begins"), [("slow-headers", b"X-Slow: "), ("slow-body", b'{"prompt": "')])
def test_slow_ones_keep_a_connection_with_a_byte_now_and_then(behaviour: str, begins: bytes) -> None:
    watching, clients = run(behaviour, 3, 1.4)
    assert watching.most_open == 3
    assert clients.num_connections == {behaviour: 3}
    assert all(got.startswith(b"POST /v1/completions HTTP/1.1\r\n") for got in watching.received)
    assert all(1 <= len(got.partition(begins)[2]) <= 4 for got in watching.received)
    assert watching.open == 0, "they leave when it is over"


def test_stalled_readers_ask_and_do_not_read() -> None:
    watching, _ = run("stalled-reader", 2, 1.0)
    assert watching.unread == 2
    assert all(b'"ignore_eos": true' in got for got in watching.received)


def test_leavers_come_again_and_again() -> None:
    watching, clients = run("leaver", 2, 1.5)
    assert clients.num_connections["leaver"] == len(watching.received) >= 4
    assert watching.open == 0


def test_gauges_are_read_and_summed() -> None:
    text = (
        '# HELP manta_num_requests_running x\nmanta_num_requests_running{model_name="a"} 2.0\n'
        'manta_num_requests_running{model_name="b"} 1.0\nmanta_kv_cache_usage_perc 0.25\nother 9\n'
    )
    assert gauges_in(text.splitlines()) == {GAUGES[0]: 3.0, GAUGES[1]: 0.0, GAUGES[2]: 0.25}


def test_who_listens_is_found() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert listeners(port) == []
        listener.listen()
        assert [one.pid for one in listeners(port)] == [os.getpid()]


def spread(p99_ms: float) -> LoadResult:
    figures = Spread(p99_ms / 2, p99_ms / 2, p99_ms)
    return LoadResult("x", 16, 9, 0, 0, {}, 1.0, 1, 1.0, 1.0, (), figures, figures, figures, figures, 0.0)


def look(memory_mib: tuple[float, float], descriptors: tuple[int, int]) -> Footprint:
    return Footprint("node", 1, memory_mib, descriptors)


@pytest.mark.parametrize(
    ("p99_ms", "remains", "words"),
    [
        (19.0, Remains(EMPTY, 1.0, (look((100, 117), (9, 11)),)), None),
        (21.0, Remains(EMPTY, 1.0, ()), "2.10 times the calm one"),
        (10.0, Remains(EMPTY | {GAUGES[0]: 1.0}, None, ()), "sequences or blocks are left"),
        (10.0, Remains(EMPTY, 1.0, (look((100, 119), (9, 9)),)), "node 1 holds 119 MiB; 100 before"),
        (10.0, Remains(EMPTY, 1.0, (look((100, 100), (9, 12)),)), "node 1 has 12 descriptors; 9 before"),
    ],
)
def test_the_verdict(p99_ms: float, remains: Remains, words: str | None) -> None:
    lines = Result(spread(10.0), spread(p99_ms), {}, remains).wrong(2.0)
    assert (words in lines[0]) if words else not lines


def test_honest_streams_are_measured_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run against a fake server, whose processes are this one."""
    from rich.console import Console

    from benchmarks.faults import hostile
    from benchmarks.faults.census import Process
    from benchmarks.faults.display import Display
    from benchmarks.faults.service import Target

    async def empty(server: Server, timeout_s: float) -> tuple[dict[str, float], float | None]:
        return dict(EMPTY), 0.0

    class Observed:
        async def serving(self) -> list[Process]:
            return [Process("node", os.getpid(), "here")]

    monkeypatch.setattr(hostile, "wait_empty", empty)
    arguments = parse(["--calm", "0.3", "--seconds", "0.5", "--settle", "0.1", "--behaviours", "slow-body,leaver"])
    arguments.clients, arguments.output_tokens = 2, 6
    with FakeServer() as url, Display(Console(quiet=True)) as display:
        target = Target(Server("fake", url, "m", 10.0), Observed())  # pyright: ignore
        result = asyncio.run(hostile.run(target, (([1],), ([2],)), 4096, arguments, display))
    assert result.calm.num_completed > 1
    assert result.beside.num_completed > 1
    assert result.ratio is not None
    assert set(result.num_connections) == {"slow-body", "leaver"}
    assert {one.kind for one in result.remains.footprints} == {"node", "ingress"}


@pytest.mark.parametrize("words", [["--behaviours", "rude"], ["--hostile", "0"], ["--max-ratio", "nan"]])
def test_bad_arguments_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
