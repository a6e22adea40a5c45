"""The service that users run, `manta serve demo`, with the same bodies: honest streams go on beside them.

Most of the time is for bodies that cost what they can, alone and several at once; the rest for pairs of fields, and for
what its own `/openapi.json` describes. Then nothing of all this may be left in the service.
"""

import itertools
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.faults.remains import gauges_in
from serving.settings import RequestLimits
from tests.fuzz.bodies import Named, big_bodies
from tests.fuzz.bytes import BUILD, ROOT, OnProgress
from tests.fuzz.extremes import BASES, allowed, extremes
from tests.fuzz.http import STALLS_FROM_S, call_operations, described, measure, shuffled
from tests.fuzz.http_client import Client, Stream
from tests.fuzz.http_cost import Gauge
from tests.fuzz.outcome import Finding, Outcome
from tests.fuzz.processes import NoServiceError, parts_at

NAME = "served"
START_TIMEOUT_S = STOP_TIMEOUT_S = 120.0
EMPTY_TIMEOUT_S = 30.0  # after which nothing of a request may be left
PATIENCE_S = 60.0  # of clients, whose requests may ask for more than a machine can give in it
POLL_S = 0.5
MAX_FIRST = 0.1  # of the time, for bodies before any is measured
SHARES = {"bodies": 0.5, "together": 0.2, "pairs": 0.15}  # of what is left then; operations get the rest
VOCABULARY = 4096  # of the demo model
HONEST = {"prompt": "Once", "max_tokens": 1024, "ignore_eos": True}
CALM = ("nothing", "/tokenize", b'{"prompt": "a"}')
NUM_CALM = 20
TOGETHER = 8  # of one body, at once


@dataclass(frozen=True)
class Service:
    """A service on this host, and its processes: id -> name."""

    host: str
    port: int
    parts: Mapping[int, str]

    def get(self, path: str) -> str:
        """What it answers. Raises AssertionError unless that is 200."""
        answer = Client(self.host, self.port).ask("GET", path)
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.body[:300]!r}"
        return answer.body.decode()

    def left(self) -> list[str]:
        """What is wrong with it EMPTY_TIMEOUT_S after everybody has left: a line each."""
        deadline_s = time.monotonic() + EMPTY_TIMEOUT_S
        while True:
            try:
                self.get("/health")
                held = {**gauges_in(self.get("/metrics").splitlines()), **json.loads(self.get("/load"))}
            except AssertionError as error:
                held = {str(error): 1}
            if not any(held.values()):
                return []
            if time.monotonic() > deadline_s:
                return [f"after {EMPTY_TIMEOUT_S:g} s without clients: {held}"]
            time.sleep(POLL_S)


def served(seconds: float, seed: int, on_progress: OnProgress, url: str | None = None) -> Outcome:
    """Sends to a whole service what is sent to a gateway: to the one at `url`, or to one that is started for it."""
    began_s = time.monotonic()
    try:
        with demo(on_progress) if url is None else running(url) as service:
            return campaign(service, seconds - (time.monotonic() - began_s), seed, on_progress)
    except (AssertionError, NoServiceError) as error:
        return Outcome(NAME, 0, "nothing", time.monotonic() - began_s, None, (Finding(str(error)),))


def campaign(service: Service, seconds: float, seed: int, on_progress: OnProgress) -> Outcome:
    """For so long. Raises AssertionError where the service does not say what it serves."""
    [model] = json.loads(service.get("/v1/models"))["data"]
    began_s, judge_stall = time.monotonic(), seconds >= STALLS_FROM_S
    client = Client(service.host, service.port, PATIENCE_S)
    bodies = list(big_bodies(RequestLimits(), model["max_model_len"]))
    with Stream(service.host, service.port, HONEST) as stream:
        gauge = Gauge(client, service.parts, stream)
        warm(gauge, bodies, seconds * MAX_FIRST)
        calm = max((gauge.cost(*CALM, judge_stall=False) for _ in range(NUM_CALM)), key=lambda one: one.held_up_s)
        left_s = seconds - (time.monotonic() - began_s)

        def part(name: str, bodies: Iterable[Named], copies: int = 1) -> Outcome:
            gauge = Gauge(client, service.parts, stream, copies)
            # How long several hold others up is told, not judged: their clients take this machine's cores too.
            judged = judge_stall and copies == 1
            return measure(f"{NAME}-{name}", gauge, bodies, left_s * SHARES[name], judged, on_progress)

        parts = [
            part("bodies", shuffled(bodies, seed)),
            part("together", shuffled(bodies, seed + 1), TOGETHER),
            part("pairs", pairs(random.Random(seed))),
        ]
        openapi = described(json.loads(service.get("/openapi.json")), model["id"])
        rest_s = seconds - (time.monotonic() - began_s)  # what ends sooner than its share leaves it to this
        parts.append(call_operations(f"{NAME}-schema", openapi, client.ask, rest_s, seed, on_progress))
    findings = [*itertools.chain.from_iterable(part.findings for part in parts), *map(Finding, service.left())]
    remarks = [f"calm, the worst of {NUM_CALM}: {calm}"]
    remarks += [f"{part.name}: {remark}" for part in parts for remark in part.remarks]
    reached = "; ".join(part.coverage for part in parts) + f"; {stream.num_tokens:,} tokens of honest streams"
    executions, spent_s = sum(part.executions for part in parts), time.monotonic() - began_s
    return Outcome(NAME, executions, reached, spent_s, None, tuple(findings), tuple(remarks), parts[0].costs)


def warm(gauge: Gauge, bodies: Iterable[Named], seconds: float) -> None:
    """Sends what makes all parts work: what the first requests leave in memory is not a body's."""
    until_s = time.monotonic() + seconds
    for _, path, body in (one for one in bodies if ":" not in one[0]):
        if time.monotonic() < until_s:
            gauge.post(path, body)


def pairs(rng: random.Random) -> Iterator[Named]:
    """Two fields at limits that are allowed, again and again; no answer is as long as the context."""
    known = {path: allowed(path, extremes(path, RequestLimits(), VOCABULARY)) for path in BASES}
    for values in known.values():
        for name in ("max_tokens", "max_completion_tokens"):
            values[name] = [value for value in values.get(name, []) if value is not None]
    while True:
        path, values = rng.choice(list(known.items()))
        one, other = rng.sample([name for name, each in values.items() if each], 2)
        body = {**BASES[path][1], one: rng.choice(values[one]), other: rng.choice(values[other])}
        yield f"{one} and {other}", path, json.dumps(body).encode()


@contextmanager
def running(url: str) -> Iterator[Service]:
    """A service that runs on this host, and goes on afterwards."""
    host, port = address(url)
    yield Service(host, port, parts_at(port))


def address(url: str) -> tuple[str, int]:
    """Host and port. Raises ValueError unless they are this machine's."""
    found = urlsplit(url)
    if found.scheme != "http" or found.hostname not in ("127.0.0.1", "localhost"):
        raise ValueError(f"{url!r} was given; allowed: http://127.0.0.1:PORT, a service of this host")
    return found.hostname, found.port or 80


@contextmanager
def demo(on_progress: OnProgress) -> Iterator[Service]:
    """`manta serve demo`, as a user starts it, on a port of its own; what it says is in build/fuzz/served/serve.log."""
    host, port, log = "127.0.0.1", _free_port(), BUILD / NAME / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("manta")), "serve", "demo", "--port", str(port)]
    on_progress(NAME, 0, "starting the service")
    with (
        log.open("w") as output,
        # A session of its own: Ctrl-C is for the campaign, which then stops the service.
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        try:
            deadline_s, client = time.monotonic() + START_TIMEOUT_S, Client(host, port)
            while client.ask("GET", "/health").status != 200:
                in_time = process.poll() is None and time.monotonic() < deadline_s
                assert in_time, f"manta serve demo did not start: {log.read_text()[-2000:]}"
                time.sleep(POLL_S)
            yield Service(host, port, parts_at(port))
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
