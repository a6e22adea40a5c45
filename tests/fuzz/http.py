"""HTTP: what `/openapi.json` promises, by schemathesis, and what bodies cost, by a gateway in its own process."""

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.core import NotSet
from schemathesis.core.result import Ok

from serving.settings import RequestLimits
from tests.fuzz.asgi import HEADERS, Answer, InProcess, check_shape
from tests.fuzz.bodies import Named, big_bodies
from tests.fuzz.bytes import BUILD, ROOT, OnProgress
from tests.fuzz.examples import examples
from tests.fuzz.http_client import LEFT, Client
from tests.fuzz.http_cost import Cost, Gauge
from tests.fuzz.http_server import MAX_CONTEXT, MODEL, make_app
from tests.fuzz.outcome import Finding, Outcome

MAX_FINDINGS = 5
NUM_WORST = 5
NUM_FIRST = 20  # bodies that are sent before any is measured
EXAMPLES = 25  # of one operation and mode, between two looks at the clock
START_TIMEOUT_S = 120.0
ALLOWED = frozenset({200, 400, 401, 404, 405, 408, 413, 415, 421, 429})
STALLS_FROM_S = 120.0  # a shorter run shares its processors with tests, and says nothing about time

Call = Callable[[str, str, bytes, dict[str, str], bytes], Answer]  # method, path, body, headers, query


@dataclass
class Reached:
    """Which answers each operation gave."""

    statuses: dict[str, set[int]]

    def __str__(self) -> str:
        answers = sum(map(len, self.statuses.values()))
        return f"{len(self.statuses)} operations, {answers} different (operation, status)"


def schema(seconds: float, seed: int, on_progress: OnProgress) -> Outcome:
    """Calls every operation with what its schema allows, and with what it does not."""
    app = make_app()
    return call_operations("schema", described(app.openapi()), InProcess(app).call, seconds, seed, on_progress)


def described(openapi: dict[str, Any], model: str = MODEL) -> dict[str, Any]:
    """A description whose bodies ask for the model that there is: of other names there is one answer, 404."""
    for body in openapi["components"]["schemas"].values():
        if "model" in body.get("properties", {}):
            body["properties"]["model"] = {"enum": [model, None]}
    return openapi


def call_operations(
    name: str, openapi: dict[str, Any], call: Call, seconds: float, seed: int, on_progress: OnProgress
) -> Outcome:
    """The same, of any description and whatever answers."""
    loaded = schemathesis.openapi.from_dict(openapi)
    operations = [found.ok() for found in loaded.get_all_operations() if isinstance(found, Ok)]
    began_s, executions, findings = time.monotonic(), 0, list[Finding]()
    reached = Reached({operation.label: set() for operation in operations})
    last: dict[str, Any] = {}

    def check(case: Case) -> None:
        nonlocal executions, last
        executions += 1
        on_progress(name, executions, str(reached))
        body = _encoded(case.body)
        headers = {**HEADERS, **{key: str(value) for key, value in (case.headers or {}).items()}}
        query = "&".join(f"{key}={value}" for key, value in (case.query or {}).items()).encode(errors="replace")
        last = {"method": case.method, "path": case.formatted_path, "body": body.decode(errors="replace")}
        answer = call(case.method, case.formatted_path, body, headers, query)
        reached.statuses[case.operation.label].add(answer.status)
        _check(case, answer)

    for turn, (operation, mode) in enumerate(itertools.cycle(itertools.product(operations, GenerationMode))):
        if time.monotonic() - began_s > seconds or len(findings) == MAX_FINDINGS:
            break
        try:
            examples(operation.as_strategy(generation_mode=mode), seed + turn, EXAMPLES)(check)()
        except Exception as error:
            if "Unsatisfiable" in type(error).__name__:
                continue  # an operation without anything that its schema does not allow
            findings.append(_kept(name, turn, f"{type(error).__name__}: {error}", last))
    return Outcome(name, executions, str(reached), time.monotonic() - began_s, None, tuple(findings))


def _check(case: Case, answer: Answer) -> None:
    if answer.status == LEFT:
        return
    assert answer.status in ALLOWED, f"{answer.status}: {answer.body[:300]!r}"
    if case.method != "HEAD" and answer.body.startswith(b"{"):
        check_shape(answer)
    elif answer.status >= 400 and case.path != "/health":
        raise AssertionError(f"{answer.status} without OpenAI's error: {answer.body[:300]!r}")


def _encoded(body: Any) -> bytes:
    if isinstance(body, NotSet):
        return b""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def cost(seconds: float, seed: int, on_progress: OnProgress) -> Outcome:
    """Sends bodies that cost what they can to a gateway of this campaign's own."""
    bodies = list(big_bodies(RequestLimits(), MAX_CONTEXT))
    with own_gateway() as gauge:
        for _, path, body in bodies[:: max(1, len(bodies) // NUM_FIRST)]:
            gauge.post(path, body)  # what the first requests leave in memory is not a body's
        return measure("cost", gauge, shuffled(bodies, seed), seconds, seconds >= STALLS_FROM_S, on_progress)


def shuffled(bodies: Iterable[Named], seed: int) -> list[Named]:
    """The bodies in an order that the seed decides."""
    ordered = list(bodies)
    random.Random(seed).shuffle(ordered)
    return ordered


def measure(
    name: str, gauge: Gauge, bodies: Iterable[Named], seconds: float, judge_stall: bool, on_progress: OnProgress
) -> Outcome:
    """Measures as many of the bodies as there is time for."""
    of = f" of {len(bodies)}" if isinstance(bodies, Sized) else ""
    began_s, costs, findings = time.monotonic(), list[Cost](), list[Finding]()
    for what, path, body in bodies:
        if time.monotonic() - began_s > seconds or len(findings) == MAX_FINDINGS:
            break
        costs.append(gauge.cost(what, path, body, judge_stall))
        on_progress(name, len(costs), f"bodies{of}")
        if costs[-1].wrong:
            kept = {"path": path, "body": body.decode(errors="replace")}
            findings.append(_kept(name, len(costs), f"{costs[-1].wrong}\n{costs[-1]}", kept))
    worst = sorted(costs, key=lambda one: one.held_up_s, reverse=True)[:NUM_WORST]
    hungriest = sorted(costs, key=lambda one: one.mib, reverse=True)[:NUM_WORST]
    remarks = [*(f"waited longest: {one}" for one in worst), *(f"most memory: {one}" for one in hungriest)]
    reached, spent_s = f"{len(costs)}{of} bodies", time.monotonic() - began_s
    return Outcome(
        name, len(costs), reached, spent_s, None, tuple(findings), tuple(remarks), (*worst, *hungriest)
    )  # fmt: skip


@contextmanager
def own_gateway() -> Iterator[Gauge]:
    """A gateway in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.http_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            client = Client("127.0.0.1", int(process.stdout.readline()))
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not client.post("/tokenize", b'{"prompt": "a"}').status:
                assert time.monotonic() < deadline_s, "the gateway did not start"
                time.sleep(0.1)
            yield Gauge(client, {process.pid: "the gateway"})
        finally:
            process.kill()


def _kept(name: str, number: int, words: str, request: dict[str, Any]) -> Finding:
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"finding-{number}.json"
    kept.write_text(json.dumps(request) + "\n")
    return Finding(f"{words}\n{json.dumps(request)[:1000]}", kept)
