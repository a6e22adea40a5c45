"""Scored prompts, allowed tokens and bad words: asked over HTTP, computed by an engine, as transformers has them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from manta.local import LocalModel, LocalSettings
from serving.app import build_app
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from tests.fuzz.asgi import InProcess
from tests.fuzz.small_service import EngineGenerator
from tests.random_checkpoint import make_checkpoint

MAX_CONTEXT, VOCABULARY, EOS = 128, 320, 1
NUM_TOKENS = 10
PROMPT = [0, 11, 70, 215, 9, 33, 33, 101]


@dataclass(frozen=True)
class World:
    """A service in this process, and the model that it serves as transformers runs it."""

    app: InProcess
    oracle: MixtralForCausalLM
    codec: TextCodec

    def ask(self, **fields: Any) -> Any:
        body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "return_token_ids": True, **fields}
        answer = self.app.post("/v1/completions", json.dumps(body).encode())
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]

    def scores(self, token_ids: list[int]) -> torch.Tensor:
        """Log-probabilities [tokens, V] of what follows each token."""
        with torch.inference_mode():
            return torch.log_softmax(self.oracle(torch.tensor([token_ids])).logits[0].double(), dim=-1)

    def follows(self, token_ids: list[int], change: Callable[[list[int], torch.Tensor], torch.Tensor]) -> None:
        """Asserts that each token is the best one of what `change` makes of outputs so far and scores [V]."""
        for index, token_id in enumerate(token_ids):
            outputs = token_ids[:index]
            changed = change(outputs, self.scores([*PROMPT, *outputs])[-1])
            assert changed[token_id] >= changed.max() - 1e-4, (index, token_ids)


@pytest.fixture
def world(tmp_path: Path, seed: int) -> Iterator[World]:
    oracle = make_checkpoint(tmp_path, seed=seed, vocab_size=VOCABULARY, max_context=MAX_CONTEXT, num_layers=2)
    settings = LocalSettings(max_context=MAX_CONTEXT, max_sequences=4, max_queued=16, prefill_chunk=4, cache_tokens=512)
    model, codec = LocalModel(tmp_path, settings), TextCodec.load(tmp_path)
    app = build_app(GatewaySettings("small", MAX_CONTEXT, (EOS,), VOCABULARY), codec, EngineGenerator(model))
    yield World(InProcess(app), oracle, codec)
    model.engine.check_integrity()
    assert not model.engine.has_work


def test_scored_prompts(world: World) -> None:
    choice = world.ask(prompt_logprobs=3, max_tokens=0)
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for position, entry in enumerate(others):
        scores, token_id = world.scores(PROMPT)[position], PROMPT[position + 1]
        best = scores.topk(3).indices.tolist()
        assert list(map(int, entry)) == [token_id, *(each for each in best if each != token_id)]
        for each in {token_id, *best}:
            found = entry[str(each)]
            assert found["logprob"] == pytest.approx(scores[each].item(), abs=1e-3)
            assert found["rank"] == int((scores > scores[each]).sum()) + 1
            assert found["decoded_token"] == world.codec.token_bytes(each).decode(errors="replace")


def test_named_alternatives(world: World) -> None:
    choice = world.ask(logprobs=0, logprob_token_ids=[5, 300], return_tokens_as_token_ids=True, ignore_eos=True)
    scores = world.scores([*PROMPT, *choice["token_ids"]])[len(PROMPT) - 1 :]
    for position, (token_id, top) in enumerate(
        zip(choice["token_ids"], choice["logprobs"]["top_logprobs"], strict=True)
    ):
        assert top.keys() == {"token_id:5", "token_id:300", f"token_id:{token_id}"}
        for name, logprob in top.items():
            wanted = scores[position][int(name.removeprefix("token_id:"))].item()
            assert logprob == pytest.approx(wanted, abs=1e-3)


def test_allowed_tokens(world: World) -> None:
    allowed = [7, 60, 200, 319]
    choice = world.ask(allowed_token_ids=allowed)

    def change(outputs: list[int], scores: torch.Tensor) -> torch.Tensor:
        del outputs
        return torch.where(torch.isin(torch.arange(VOCABULARY), torch.tensor(allowed)), scores, -torch.inf)

    assert len(choice["token_ids"]) == NUM_TOKENS
    world.follows(choice["token_ids"], change)


def test_bad_words(world: World) -> None:
    """Those that the model would write, one token after the other, by the words that their tokens are."""
    plain = world.ask(ignore_eos=True)["token_ids"]
    pieces = [world.codec.token_bytes(token_id) for token_id in plain]
    # As text, of which more is blank than of bytes.
    words = sorted({piece.decode() for piece in pieces if piece.isascii() and piece.decode().strip()}) or ["a"]
    choice = world.ask(ignore_eos=True, bad_words=words)
    forms = [form for word in words for form in written(world.codec, word.lstrip())]
    processor = NoBadWordsLogitsProcessor(forms)

    def change(outputs: list[int], scores: torch.Tensor) -> torch.Tensor:
        return processor(torch.tensor([outputs], dtype=torch.long), scores[None].clone())[0]

    world.follows(choice["token_ids"], change)
    for form in forms:
        written_ids = choice["token_ids"]
        assert form not in [written_ids[i : i + len(form)] for i in range(len(written_ids))]


def written(codec: TextCodec, word: str) -> list[list[int]]:
    """A word's tokens at the beginning of a text and after a blank, where it is then one other token."""
    bare, after_blank = asyncio.run(codec.encode_all([word, f" {word}"], add_special_tokens=False))
    return [bare, *([after_blank] if len(bare) == len(after_blank) and bare[0] != after_blank[0] else [])]
