"""A whole model over links that fail: the tokens of real nodes, routers and experts are those of transformers.

The faults are in the links from the node to its router and from the router to the experts, over Unix sockets and over
sealed TCP. What is expected is what transformers itself generates, greedily, from the same checkpoint.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

import transport.link
import transport.replicas
from attention.sizing import NodeSettings
from tests.attention.behind_proxies import Proxied, again_and_again, service_behind_proxies
from tests.attention.node_setup import TIMEOUT_S, Gateway
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint
from tests.transport.links import Direction, Faults, LinkProxy

VOCABULARY, NUM_LAYERS = 97, 2
SETTINGS = NodeSettings(8, 128, None, prefill_chunk=None, max_batch_tokens=64, max_sequences=4, max_queued=8)
ANSWER_TIMEOUT_S = 0.5
LINKS = ("node to router", "router to experts")
DIRECTIONS: tuple[Direction, ...] = ("to server", "to client")
NUM_SAMPLED = 8  # cuts of a link in one direction, in the short form
DELAY_S, BYTES_PER_S = 0.01, 20e3

Prompts = list[list[int]]


@dataclass
class Served:
    """A service, and what transformers says to the same prompts."""

    model: MixtralForCausalLM
    oracle: Oracle
    gateway: Gateway
    proxied: Proxied
    num_requests: int = 0

    def proxies(self, link: str) -> list[LinkProxy]:
        """Those of one of LINKS."""
        return [self.proxied.of_router] if link == "node to router" else self.proxied.of_experts

    def expected(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        """What transformers generates."""
        answers: list[list[int]] = []
        model: Any = self.model  # its types say that it cannot generate
        for prompt in prompts:
            ids_BL = torch.tensor([prompt])
            with torch.inference_mode():
                output_BL = model.generate(
                    ids_BL,
                    attention_mask=torch.ones_like(ids_BL),
                    do_sample=False,
                    max_new_tokens=num_tokens,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            answers.append(output_BL[0, len(prompt) :].tolist())
        return answers

    def check(self, prompts: Prompts, expected: list[list[int]]) -> None:
        """Asserts that the service answers what transformers does; only a near-tie of theirs excuses another token."""
        ids = range(self.num_requests, self.num_requests + len(prompts))
        self.num_requests += len(prompts)
        for sequence_id, prompt, tokens in zip(ids, prompts, expected, strict=True):
            self.gateway.submit(sequence_id, prompt, max_tokens=len(tokens), ignore_eos=True)
        outputs = self.gateway.finish(*ids)
        assert not [output.failure for output in outputs if output.HasField("failure")]
        for prompt, output, tokens in zip(prompts, outputs, expected, strict=True):
            assert len(output.token_ids) == len(tokens)
            self.oracle.check_same(prompt, output.token_ids, tokens)

    def draw(self, rng: Random, count: int, length: int, num_tokens: int) -> Prompts:
        """Prompts of which no near-tie between experts touches the answer."""
        return [
            self.oracle.certain_prompt(lambda: [rng.randrange(VOCABULARY) for _ in range(length)], num_tokens)
            for _ in range(count)
        ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, seed: int) -> tuple[Path, MixtralForCausalLM]:
    path = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 16, "ffn_size": 24, "num_layers": NUM_LAYERS, "num_heads": 2, "num_kv_heads": 1}
    return path, make_checkpoint(path, **sizes, vocab_size=VOCABULARY, window=8, seed=seed, with_tokenizer=False)


@pytest.fixture(scope="module", params=[False, True], ids=["unix", "sealed-tcp"])
def served(request: pytest.FixtureRequest, checkpoint: tuple[Path, MixtralForCausalLM]) -> Iterator[Served]:
    directory, model = checkpoint
    with pytest.MonkeyPatch.context() as patch:
        for module, pause in ((transport.link, "FIRST_RETRY_S"), (transport.replicas, "PAUSE_S")):
            patch.setattr(module, pause, 0.0)
        patch.setattr(transport.link, "LAST_RETRY_S", 0.05)
        with service_behind_proxies(directory, SETTINGS, request.param, ANSWER_TIMEOUT_S) as proxied:
            gateway = Gateway(proxied.address)
            yield Served(model, Oracle(model), gateway, proxied)
            gateway.close()


@pytest.fixture(autouse=True)
def whole_links_afterwards(served: Served) -> Iterator[None]:
    yield
    for proxy in served.proxied.proxies:
        proxy.faults = Faults()


def made_anew(proxy: LinkProxy) -> None:
    """Ends a proxy's connections; returns once it has."""
    ended = threading.Event()
    proxy.loop.post(lambda: (proxy.reset(), ended.set()))
    assert ended.wait(TIMEOUT_S)


@pytest.mark.parametrize("every_byte", [False, pytest.param(True, marks=pytest.mark.full)], ids=["some", "every"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("link", LINKS)
def test_a_link_cut_at_any_byte(served: Served, link: str, direction: Direction, every_byte: bool, seed: int) -> None:
    """Of all that a connection carries: the handshake, the prompt's rows, and those of two tokens."""
    prompts = served.draw(Random(seed), 1, length=3, num_tokens=2)
    expected = served.expected(prompts, 2)
    served.check(prompts, expected)
    for proxy in served.proxies(link):
        made_anew(proxy)
        before = proxy.passed[direction]
        served.check(prompts, expected)
        num_bytes = proxy.passed[direction] - before
        assert num_bytes > 200
        cuts = range(1, num_bytes)
        for cut in cuts if every_byte else sorted(Random(f"{seed} {link}").sample(cuts, NUM_SAMPLED)):
            num_connections = proxy.num_connections
            proxy.faults.cuts.append((direction, cut))
            made_anew(proxy)
            served.check(prompts, expected)
            assert proxy.num_connections >= num_connections + 2, f"cut after {cut} of {num_bytes} bytes {direction}"


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("fault", [{"delay_s": DELAY_S}, {"bytes_per_s": BYTES_PER_S}], ids=["delay", "slow"])
def test_a_link_that_delays_and_one_that_is_slow(served: Served, link: str, fault: dict[str, float], seed: int) -> None:
    prompts = served.draw(Random(seed), 3, length=12, num_tokens=8)
    expected = served.expected(prompts, 8)
    proxies = served.proxies(link)
    for proxy in proxies:
        proxy.faults = Faults(**fault)  # pyright: ignore[reportArgumentType]
    before, begun_s = [(sum(proxy.passed.values()), proxy.num_connections) for proxy in proxies], time.monotonic()
    served.check(prompts, expected)
    took_s = time.monotonic() - begun_s
    for proxy, (passed, num_connections) in zip(proxies, before, strict=True):
        num_bytes = sum(proxy.passed.values()) - passed
        assert took_s > (8 * NUM_LAYERS * 2 * DELAY_S if "delay_s" in fault else num_bytes / BYTES_PER_S / 4)
        assert proxy.num_connections == num_connections, "late is not lost"


def reset(proxy: LinkProxy) -> None:
    made_anew(proxy)
    time.sleep(0.05)


def half_open(direction: Direction | None) -> Callable[[LinkProxy], None]:
    """Everything of that direction, or of both, is taken and lost, until it has been noticed."""

    def swallow(proxy: LinkProxy) -> None:
        proxy.faults = Faults(silent=direction is None, silent_direction=direction)
        time.sleep(1.5 * ANSWER_TIMEOUT_S)
        proxy.faults = Faults()
        made_anew(proxy)  # a connection that was begun meanwhile would wait for its handshake's end
        time.sleep(0.1)

    return swallow


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    "fault",
    [reset, half_open(None), half_open("to server"), half_open("to client")],
    ids=["reset", "half-open", "half-open-to-server", "half-open-to-client"],
)
def test_a_link_that_fails_again_and_again(
    served: Served, link: str, fault: Callable[[LinkProxy], None], seed: int
) -> None:
    rng, proxies = Random(seed), served.proxies(link)
    prompts = served.draw(rng, 2, length=12, num_tokens=8)
    expected = served.expected(prompts, 8)
    num_connections = sum(proxy.num_connections for proxy in proxies)
    with again_and_again(lambda: fault(rng.choice(proxies))):
        until_s = time.monotonic() + 2 * ANSWER_TIMEOUT_S
        while time.monotonic() < until_s:
            served.check(prompts, expected)
    assert sum(proxy.num_connections for proxy in proxies) > num_connections, "something was made anew"
