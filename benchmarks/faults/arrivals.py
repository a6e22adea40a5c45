"""Requests that come when they come, whether or not the ones before have been answered: an open loop."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.client import Server, complete, completion_body, open_session
from benchmarks.load import RequestRecord
from benchmarks.workload import Prompt

WARM_SHARE = 1 / 3  # of a level's time, in which queues fill: it counts in no goodput
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Level:
    """What requests at one rate got.

    Args:
        factor: The rate, as a multiple of what the service can do.
        rate_per_s: Requests a second that were sent, on average.
        seconds: For how long they were sent.
        statuses: How many requests ended with which HTTP status; `failed` for those that ended otherwise.
        errors: What those said.
        goodput: Output tokens a second of requests that completed, once warm.
    """

    factor: float
    rate_per_s: float
    seconds: float
    statuses: dict[str, int]
    errors: dict[str, int]
    goodput: float

    @property
    def num_wrong(self) -> int:
        """Requests that got neither an answer nor the word to come again later."""
        return sum(number for status, number in self.statuses.items() if status not in ("200", "429"))


def poisson_moments(rate_per_s: float, seconds: float, rng: random.Random) -> list[float]:
    """When requests arrive, in seconds from now on, if they know nothing of each other."""
    moments, now_s = list[float](), rng.expovariate(rate_per_s)
    while now_s < seconds:
        moments.append(now_s)
        now_s += rng.expovariate(rate_per_s)
    return moments


async def send_at(
    server: Server,
    prompts: Sequence[Prompt],
    output_len: int,
    moments_s: Sequence[float],
    on_request: Callable[[RequestRecord], None],
) -> tuple[float, list[RequestRecord]]:
    """Sends one request at each moment; returns when it began (time.perf_counter) and what each got."""
    url = f"{server.base_url}/v1/completions"
    async with open_session(server.timeout_s) as session:
        began_s = time.perf_counter()

        async def send(index: int, moment_s: float) -> RequestRecord:
            await asyncio.sleep(moment_s - (time.perf_counter() - began_s))
            body = completion_body(server.model, prompts[index % len(prompts)], output_len)
            record = await complete(session, url, body)
            on_request(record)
            return record

        return began_s, await asyncio.gather(*(send(index, moment_s) for index, moment_s in enumerate(moments_s)))


def summarise(
    factor: float, rate_per_s: float, seconds: float, began_s: float, records: Sequence[RequestRecord]
) -> Level:
    """Counts what one level's requests got."""
    statuses = Counter(status_of(record) for record in records)
    errors = Counter(record.error for record in records if record.error is not None and status_of(record) != "429")
    goodput = tokens_per_s(records, began_s + seconds * WARM_SHARE, began_s + seconds)
    return Level(factor, rate_per_s, seconds, dict(statuses.most_common()), dict(errors.most_common()), goodput)


def status_of(record: RequestRecord) -> str:
    """The HTTP status that a request ended with; FAILED where its stream or its connection broke."""
    if record.error is None:
        return "200"
    words = record.error.partition(":")[0].split()
    return words[1] if len(words) == 2 and words[0] == "HTTP" else FAILED


def tokens_per_s(records: Sequence[RequestRecord], from_s: float, to_s: float) -> float:
    """Output tokens a second that came within a time, of requests that completed."""
    tokens = 0.0
    for record in records:
        if record.error is None and record.chunks_s:
            within = sum(from_s <= moment_s < to_s for moment_s in record.chunks_s)
            tokens += record.num_output_tokens * within / len(record.chunks_s)
    return tokens / (to_s - from_s)
