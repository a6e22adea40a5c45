"""The fixture maker: its tokenizer round-trips, its model is not degenerate, its files do not depend on other state."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.random_checkpoint import make_checkpoint, make_tokenizer


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = make_tokenizer(320)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_files(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=1)
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert bare.get_vocab_size() == 320
    assert bare.encode("def f():").ids[0] == 0
    full = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    text = full.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>user: hi\nassistant:"
    with pytest.raises(ValueError, match="needs 259"):
        make_tokenizer(258)


def test_same_seed_same_weights_and_global_generator_untouched(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_checkpoint(tmp_path / name, seed=seed, with_tokenizer=False)
    assert torch.equal(state, torch.get_rng_state())
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def test_routing_and_logits_vary(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, seed=3, with_tokenizer=False)
    with torch.no_grad():
        output = model(torch.arange(256).view(1, -1), output_router_logits=True)
    for logits in output.router_logits:
        assert torch.bincount(logits.topk(2).indices.flatten(), minlength=8).min() > 8
    assert output.logits.std() > 1
    assert output.logits.argmax(-1).unique().numel() > 60
