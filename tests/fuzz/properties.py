"""Every field of a request at its limits, alone, in pairs and many at once, through the gateway and a real engine.

No request may fail inside, and each must leave the engine empty, its blocks and lanes accounted for.
"""

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.bytes import BUILD, OnProgress
from tests.fuzz.examples import examples
from tests.fuzz.extremes import BASES, allowed, extremes
from tests.fuzz.outcome import Finding, Outcome
from tests.fuzz.small_service import LIMITS, VOCABULARY, SmallService, small_service

MAX_FINDINGS = 5
EXAMPLES = 50  # of hypothesis, between two looks at the clock

Request = tuple[str, dict[str, Any]]


def fields() -> dict[str, dict[str, list[Any]]]:
    """Path -> field -> its values."""
    return {path: extremes(path, LIMITS, VOCABULARY) for path in BASES}


def singles() -> list[Request]:
    """Every field at each of its limits, the others as they must be."""
    return [(path, {**BASES[path][1], name: value})
            for path, names in fields().items() for name, values in names.items() for value in values]  # fmt: skip


def pairs() -> list[Request]:
    """Every two fields, each at each of its limits that is allowed by itself."""
    return [
        (path, {**BASES[path][1], one: value, other: another})
        for path, names in ((path, allowed(path, names)) for path, names in fields().items())
        for one, other in itertools.combinations(names, 2)
        for value in names[one]
        for another in names[other]
    ]


def enumerate_all(
    name: str, requests: Callable[[], list[Request]], seconds: float, seed: int, on_progress: OnProgress
) -> Outcome:
    """Asks for as many of the requests as there is time for, in an order that the seed decides."""
    service, all_of_them = small_service(seed), requests()
    random.Random(seed).shuffle(all_of_them)
    began_s, executions, findings = time.monotonic(), 0, list[Finding]()
    for path, body in all_of_them:
        if time.monotonic() - began_s > seconds or len(findings) == MAX_FINDINGS:
            break
        executions += 1
        on_progress(name, executions, f"of {len(all_of_them):,}")
        try:
            service.ask(path, body)
        except Exception as error:  # whatever it is, it is the finding
            findings.append(_kept(name, executions, path, body, error))
            service = _another(seed)
    reached = f"{executions / len(all_of_them):.1%} of {len(all_of_them):,} {name}"
    return Outcome(name, executions, reached, time.monotonic() - began_s, None, tuple(findings))


def many(name: str, seconds: float, seed: int, on_progress: OnProgress) -> Outcome:
    """Lets hypothesis put bodies of many fields together, several sent at once, some of whose clients leave."""
    executions, began_s, findings = 0, time.monotonic(), list[Finding]()
    service = small_service(seed)
    last: list[Any] = []
    mixes = st.lists(_requests(), min_size=1, max_size=3)

    def check(requests: list[tuple[str, dict[str, Any], int | None]]) -> None:
        nonlocal executions, last
        executions += 1
        on_progress(name, executions, f"{executions:,} mixes")
        last = requests
        service.ask_together(requests)

    for turn in itertools.count():
        if time.monotonic() - began_s > seconds or len(findings) == MAX_FINDINGS:
            break
        try:
            examples(mixes, seed + turn, EXAMPLES)(check)()
        except Exception as error:
            findings.append(_kept(name, turn, "several", last, error))
            service = _another(seed)
    return Outcome(name, executions, "mixes of 1 to 3 requests", time.monotonic() - began_s, None, tuple(findings))


def _requests() -> st.SearchStrategy[tuple[str, dict[str, Any], int | None]]:
    leaves = st.one_of(st.none(), st.integers(0, 3))
    return st.one_of([st.tuples(st.just(path), _bodies(path, names), leaves) for path, names in fields().items()])


def _bodies(path: str, names: Mapping[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    chosen = {name: st.one_of(st.sampled_from(values), *_random(name)) for name, values in names.items()}
    return st.fixed_dictionaries({}, optional=chosen).map(lambda body: {**BASES[path][1], **body})


def _random(name: str) -> Iterator[st.SearchStrategy[Any]]:
    """Values between the limits of fields that decide what the sampler and the scheduler do."""
    if name in ("temperature", "repetition_penalty"):
        yield st.floats(0.01, 100)
    if name in ("top_p", "min_p"):
        yield st.floats(0.001, 1)
    if name in ("presence_penalty", "frequency_penalty"):
        yield st.floats(-2, 2)
    if name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        yield st.integers(0, 60)
    if name == "logit_bias":
        yield st.dictionaries(st.integers(0, VOCABULARY - 1).map(str), st.floats(-100, 100), max_size=8)
    if name == "prompt":
        yield st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=50), min_size=1, max_size=4)
        yield st.text(max_size=40)


def _another(seed: int) -> SmallService:
    """A service that is whole: one that a request has failed in may hold what that left."""
    small_service.cache_clear()
    return small_service(seed)


def _kept(name: str, number: int, path: str, body: Any, error: Exception) -> Finding:
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"finding-{number}.json"
    kept.write_text(json.dumps({"path": path, "body": body}) + "\n")
    return Finding(f"{type(error).__name__}: {error}\n{path} {json.dumps(body)[:2000]}", kept)
