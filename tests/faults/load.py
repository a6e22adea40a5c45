"""Streams that keep a service busy while something is done to it; none may fail, and each must be right."""

import random
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.integration.ray_fixtures import VOCABULARY, WINDOW
from tests.integration.ray_service import Answer, RayService, complete_streaming, wait_until
from tests.oracle import Oracle

NUM_STREAMS = 4
NUM_TOKENS = 200
FLOW = 20  # tokens of each stream that show that it flows
TIMEOUT_S = 90.0


@dataclass
class Load:
    """Streams under way.

    Args:
        num_tokens: Tokens so far of each of the parallel streams, over all its requests.
        answers: Prompts and outputs of the requests that have ended.
        failures: Why requests failed.
    """

    num_tokens: list[int]
    answers: list[tuple[list[int], Answer]] = field(default_factory=list[tuple[list[int], Answer]])
    failures: list[BaseException] = field(default_factory=list[BaseException])
    over: threading.Event = field(default_factory=threading.Event)

    def wait_flowing(self, num_more: int = FLOW) -> None:
        """Waits until every stream has got so many more tokens than it has now."""
        wanted = [count + num_more for count in self.num_tokens]

        def flow() -> bool:
            return bool(self.failures) or all(now >= goal for now, goal in zip(self.num_tokens, wanted, strict=True))

        wait_until(flow, TIMEOUT_S, "every stream goes on", lambda: (self.num_tokens, wanted))
        self.check_none_failed()

    def check_none_failed(self) -> None:
        if self.failures:
            raise AssertionError(f"{len(self.failures)} requests failed") from self.failures[0]


@contextmanager
def load(service: RayService, oracle: Oracle, seed: int, num_streams: int = NUM_STREAMS) -> Generator[Load]:
    """Keeps so many greedy streams under way, each followed by another one, until the block ends; judges them all."""
    state = Load([0] * num_streams)
    threads = [
        threading.Thread(target=_ask_on, args=(service, state, number, random.Random(seed * 1000 + number)))
        for number in range(num_streams)
    ]
    for thread in threads:
        thread.start()
    try:
        state.wait_flowing()
        yield state
        state.wait_flowing()
    finally:
        state.over.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads), "a stream stands still"
    state.check_none_failed()
    for prompt, answer in state.answers:
        assert (len(answer.token_ids), answer.finish_reason) == (NUM_TOKENS, "length")
        oracle.check_greedy(prompt, answer.token_ids)


def a_prompt(rng: random.Random) -> list[int]:
    """Several windows of random tokens."""
    return [rng.randrange(3, VOCABULARY) for _ in range(3 * WINDOW)]


def _ask_on(service: RayService, state: Load, number: int, rng: random.Random) -> None:
    client, before = service.client(), 0

    def note(num_tokens: int) -> None:
        state.num_tokens[number] = before + num_tokens

    while not state.over.is_set():
        prompt = a_prompt(rng)
        try:
            answer = complete_streaming(client, prompt, NUM_TOKENS, note)
        except BaseException as error:
            state.failures.append(error)
            return
        before += NUM_TOKENS
        state.answers.append((prompt, answer))
