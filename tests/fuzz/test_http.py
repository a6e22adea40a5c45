"""The oracle of HTTP tells what is wrong: statuses, shapes, memory, stalls. And what it asks for is what it says."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.settings import READ_AHEAD_BYTES, RequestLimits
from tests.fuzz import http
from tests.fuzz.asgi import Answer, InProcess
from tests.fuzz.bodies import big_bodies
from tests.fuzz.extremes import BASES
from tests.fuzz.http import call_operations, described, measure, own_gateway, schema, shuffled
from tests.fuzz.http_client import Client
from tests.fuzz.http_cost import Gauge
from tests.fuzz.http_server import make_app

LIMITS = RequestLimits(max_body_bytes=20_000)


def quiet(name: str, executions: int, reached: str) -> None:
    del name, executions, reached


def test_what_the_description_allows_and_what_not(seed: int) -> None:
    outcome = schema(3, seed, quiet)
    assert not outcome.findings, outcome.findings
    assert outcome.executions > 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(500, b'{"error": {}}'), "500"),
        (Answer(422, b'{"detail": "x"}'), "422"),
        (Answer(400, b'{"detail": "x"}'), "KeyError: 'error'"),
        (Answer(400, b"no"), "400 without OpenAI's error"),
    ],
)
def test_answers_that_are_wrong_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, answer: Answer, words: str
) -> None:
    monkeypatch.setattr(http, "BUILD", tmp_path)
    monkeypatch.setattr(http, "MAX_FINDINGS", 1)
    (finding,) = call_operations(
        "schema", described(make_app().openapi()), lambda *call: answer, 60, seed, quiet
    ).findings
    assert words in finding.words
    assert finding.path is not None
    assert "method" in json.loads(finding.path.read_text())


def test_an_answer_of_several_pieces_is_taken() -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20}
    answer = InProcess(make_app()).post("/v1/chat/completions", json.dumps(body).encode())
    assert answer.status == 200
    assert len(answer.body) > 2 * READ_AHEAD_BYTES


def test_bodies_fill_every_field_and_none_is_longer_than_allowed() -> None:
    bodies = list(big_bodies(LIMITS, 4096))
    assert max(len(body) for name, _, body in bodies if ":" in name) <= LIMITS.max_body_bytes
    assert min(len(body) for name, _, body in bodies if ":" in name) > LIMITS.max_body_bytes * 0.9
    for path, (kind, _) in BASES.items():
        filled = {name.split(":")[0] for name, to, _ in bodies if to == path and ":" in name}
        assert filled == {*kind.model_json_schema()["properties"], "an_unknown_field"}
    assert len({(name, path) for name, path, _ in bodies}) == len(bodies)


def test_a_gateway_stands_some_of_them(seed: int) -> None:
    with own_gateway() as gauge:
        outcome = measure("cost", gauge, shuffled(big_bodies(LIMITS, 4096), seed), 3, False, quiet)
    assert not outcome.findings, outcome.findings
    assert outcome.executions > 5
    assert len(outcome.remarks) == len(outcome.costs) == 2 * http.NUM_WORST


class Hoarder(BaseHTTPRequestHandler):
    """Does what the body says: `stall` keeps everyone waiting, `hoard` takes 80 MiB, `fail` answers 500."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if body == b"hoard":
            assert bytearray(b"\1") * (80 << 20)
        with self.lock:
            time.sleep(0.4 if body == b"stall" else 0)
        self._answer(500 if body == b"fail" else 200)

    def do_GET(self) -> None:
        with self.lock:
            self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def gauge() -> Iterator[Gauge]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hoarder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Gauge(Client("127.0.0.1", server.server_port), {os.getpid(): "this"})
    server.shutdown()
    thread.join(10)


@pytest.mark.parametrize(
    ("body", "words"), [(b"stall", "others waited"), (b"hoard", "it took"), (b"fail", "AssertionError: 500"), (b"", "")]
)
def test_what_a_body_does_to_others_is_told(gauge: Gauge, body: bytes, words: str) -> None:
    cost = gauge.cost("some", "/", body, judge_stall=body == b"stall")
    assert words in cost.wrong if words else not cost.wrong, cost
    assert (cost.stall_s > 0.2) or body != b"stall"
    assert str(len(body)) in str(cost)
