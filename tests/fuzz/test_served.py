"""The campaign against a whole service: what its clients notice, and once the service itself."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest

from serving.settings import RequestLimits
from tests.fuzz import http_client, served
from tests.fuzz.command import main, parse
from tests.fuzz.http_client import BROKEN, LEFT, Client, Stream
from tests.fuzz.http_cost import Gauge
from tests.fuzz.processes import Memory, NoServiceError, parts_at
from tests.fuzz.served import HONEST, Service

WAIT_S = 20.0


class Scripted(BaseHTTPRequestHandler):
    """A service whose streams wait for `gate` after their second token, and that says it holds `held` sequences."""

    protocol_version = "HTTP/1.1"
    gate = threading.Event()
    status, held, asked = 200, 0, 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        if self.path == "/cut":
            self._answer(200, b"half", 8)
            self.close_connection = True
        elif self.path == "/slow":
            self.gate.wait(WAIT_S)
            self._answer(200, b"{}", 2)
        elif self.status != 200:
            self._answer(self.status, b"{}", 2)
        else:
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            for _ in range(2):
                self._token()
            self.gate.wait(WAIT_S)
            self._token()

    def do_GET(self) -> None:
        texts = {"/metrics": f"manta_num_requests_running {self.held}.0\n", "/load": f'{{"server_load": {self.held}}}'}
        text = texts.get(self.path, "{}").encode()
        self._answer(200, text, len(text))

    def _token(self) -> None:
        self.wfile.write(b'data: {"choices":[]}\n\n')
        self.wfile.flush()

    def _answer(self, status: int, body: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def scripted() -> Iterator[type[Scripted]]:
    class Fresh(Scripted):
        gate = threading.Event()

    yield Fresh
    Fresh.gate.set()


@pytest.fixture
def port(scripted: type[Scripted]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), scripted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    scripted.gate.set()
    server.shutdown()
    thread.join(WAIT_S)
    server.server_close()


def wait_until(happened) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_stream_tells_how_long_it_waited(scripted: type[Scripted], port: int) -> None:
    with Stream("127.0.0.1", port, HONEST) as stream:
        wait_until(lambda: stream.num_tokens == 2)
        began_s = time.monotonic()
        time.sleep(0.05)
        assert stream.longest_gap_s(began_s) >= 0.05  # it has not ended
        scripted.gate.set()
        wait_until(lambda: stream.num_tokens > 2)
        assert stream.longest_gap_s(began_s) >= 0.05
        assert not stream.take_failures()


@pytest.mark.parametrize(("status", "fails"), [(500, True), (429, False)])
def test_a_stream_that_fails_counts_and_one_that_is_refused_does_not(
    scripted: type[Scripted], port: int, monkeypatch: pytest.MonkeyPatch, status: int, fails: bool
) -> None:
    monkeypatch.setattr(http_client, "REFUSED_PAUSE_S", 0.01)
    scripted.status = status
    with Stream("127.0.0.1", port, HONEST) as stream:
        wait_until(lambda: scripted.asked > 3)
        gauge = Gauge(Client("127.0.0.1", port), {os.getpid(): "this"}, stream)
        wrong = gauge.cost("nothing", "/", b"", judge_stall=False).wrong
    assert ("the stream beside it failed: 500" in wrong) == fails


def test_a_client_leaves_or_tells_what_is_wrong(
    scripted: type[Scripted], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Client("127.0.0.1", port, 0.05).post("/slow", b"").status == LEFT
    assert Client("127.0.0.1", port).post("/cut", b"").status == BROKEN
    monkeypatch.setattr(http_client, "CLIENT_TIMEOUT_S", 0.05)
    assert Client("127.0.0.1", port).post("/slow", b"").status == BROKEN
    scripted.gate.set()


@pytest.mark.parametrize(("held", "num_lines"), [(0, 0), (3, 1)])
def test_what_is_left_in_a_service_is_told(
    scripted: type[Scripted], port: int, monkeypatch: pytest.MonkeyPatch, held: int, num_lines: int
) -> None:
    monkeypatch.setattr(served, "EMPTY_TIMEOUT_S", 0.0)
    scripted.held = held
    assert len(Service("127.0.0.1", port, {}).left()) == num_lines


def test_a_service_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "EMPTY_TIMEOUT_S", 0.0)
    [line] = Service("127.0.0.1", 1, {}).left()
    assert "GET /health" in line


def test_only_services_are_measured(port: int) -> None:
    with pytest.raises(NoServiceError, match=str(port)):
        parts_at(port)


def test_memory_is_the_peak_and_who_ends_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        memory = Memory([os.getpid(), child.pid])
        before_mib = memory.mark()
        assert before_mib.keys() == {os.getpid(), child.pid}
        assert bytearray(b"\1") * (80 << 20)  # gone at once
        assert max(memory.grown_mib(before_mib)) > 70
        assert not memory.take_ended()
        child.kill()
    assert memory.take_ended() == {child.pid}
    assert memory.now_mib().keys() == {os.getpid()}


def test_pairs_are_within_the_limit_of_a_body_and_end(seed: int) -> None:
    for name, path, body in islice(served.pairs(random.Random(seed)), 300):
        assert path.startswith("/"), name
        assert len(body) <= RequestLimits().max_body_bytes
        assert json.loads(body).get("max_tokens", 2) is not None


@pytest.mark.parametrize("url", ["http://example.com:8000", "127.0.0.1:8000", "https://127.0.0.1"])
def test_only_services_of_this_host_are_fuzzed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--only", "served", "--url", url])
    assert stopped.value.code == 2
    assert "allowed: http://127.0.0.1:PORT" in " ".join(capsys.readouterr().err.split())


def test_the_part_uses_the_service_at_the_url(port: int) -> None:
    arguments = parse(["--only", "served", "--url", f"http://127.0.0.1:{port}"])
    outcome = arguments.only["http"]["served"](1.0, 1, lambda *_: None)
    assert [str(port) in finding.words for finding in outcome.findings] == [True]


@pytest.mark.full
def test_the_service_stands_a_minute_of_it(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "out.json"
    arguments = ["--minutes", "1", "--only", "served", "--seed", str(seed % 10**6 + 1), "--json", str(written)]
    assert main(arguments) == 0, capsys.readouterr().out
    [outcome] = json.loads(written.read_text())["outcomes"]
    assert len(outcome["costs"]) > 5
    assert {"status", "stall_s", "gap_s", "mib"} <= outcome["costs"][0].keys()
