"""Train the bundled demo model: `python -m manta.demo.recipe OUT [--minutes N]`, on one thread of one core.

OUT is a usable checkpoint from the first save on, a minute or so in. The learning rate follows the training time
actually spent, so a run that is paused (SIGSTOP), slowed by its neighbours or moved to another machine still ends where
it should. `--finish` scores OUT on the held-out files and writes its model card.

Legend: B sequences, L tokens of one training sequence, N tokens of the whole corpus.
"""

import argparse
import copy
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import MixtralConfig, MixtralForCausalLM

from manta.demo import card, corpus

TOKENS_PER_STEP = 2048
SHORT_LEN, LONG_LEN = 256, 512
LONG_FROM = 0.7  # the last part of training sees sequences of two windows, so that it learns what a window hides
PEAK_LR, FINAL_LR, WARMUP = 2e-3, 1e-4, 0.02
SAVE_EVERY_S = 240.0
LONGEST_STEP_S = 10.0
LOG_EVERY = 25
NUM_EVAL_TOKENS = 16384


@dataclass(slots=True)
class TrainingClock:
    """Seconds spent training. A step longer than `longest_step_s` was a pause, and counts nothing."""

    budget_s: float
    longest_step_s: float = LONGEST_STEP_S
    spent_s: float = 0.0

    def add(self, step_s: float) -> None:
        """Count one step that took `step_s` seconds."""
        if step_s <= self.longest_step_s:
            self.spent_s += step_s

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(self.spent_s / self.budget_s, 1.0)


def learning_rate(progress: float) -> float:
    """Linear warm-up over the first 2 % of `progress` (0 to 1), then a cosine from PEAK_LR down to FINAL_LR."""
    if progress < WARMUP:
        return PEAK_LR * max(progress / WARMUP, 0.01)
    turn = (progress - WARMUP) / (1 - WARMUP)
    return FINAL_LR + (PEAK_LR - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * turn))


def demo_config() -> MixtralConfig:
    """9.6 M parameters, of which 3.7 M work on any one token; bf16 weights take 19.2 MB."""
    return MixtralConfig(
        vocab_size=corpus.VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=256,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        router_aux_loss_coef=0.02,
        bos_token_id=0,
        eos_token_id=1,
    )


def batches(ids_N: torch.Tensor, starts: list[int], length: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield (B, L) batches for ever: each pass cuts the corpus anew, at a random phase, and shuffles the pieces.

    Two rows of every batch differ, because a prompt starts with <s> and a piece of the corpus seldom does: one starts
    where a document does, the other where its piece does but with <s> in place of its first token.
    """
    num_rows = TOKENS_PER_STEP // length
    while True:
        phase = int(torch.randint(length, (1,), generator=rng))
        order = torch.randperm((len(ids_N) - phase) // length, generator=rng) * length + phase
        for rows in order.split(num_rows):
            rows = rows.clone()
            rows[0] = starts[int(torch.randint(len(starts), (1,), generator=rng))]
            batch_BL = torch.stack([ids_N[row : row + length] for row in rows.tolist()]).long()
            batch_BL[-1, 0] = 0
            yield batch_BL


@dataclass(slots=True)
class Data:
    """The encoded corpus: one stream of ids, where its documents start, and some held-out documents to watch."""

    train_N: torch.Tensor
    starts: list[int]
    watched: list[list[int]] = field(default_factory=list)


def encode(tokenizer: Tokenizer, texts: corpus.Corpus) -> Data:
    """Encode the corpus; the watched documents are the first held-out ones, NUM_EVAL_TOKENS tokens of them."""
    ids: list[int] = []
    starts: list[int] = []
    for document in corpus.encode_documents(tokenizer, texts.train.values()):
        starts.append(len(ids))
        ids += document
    starts = [start for start in starts if start + LONG_LEN <= len(ids)]
    watched: list[list[int]] = []
    for document in corpus.encode_documents(tokenizer, texts.held_out.values()):
        if sum(map(len, watched)) < NUM_EVAL_TOKENS:
            watched.append(document)
    return Data(torch.tensor(ids, dtype=torch.int16), starts, watched)


def write_atomically(out: Path, files: dict[str, bytes]) -> None:
    """Replace each named file under `out` in one step, so that a reader never sees half of one."""
    for name, content in files.items():
        scratch = out / f".{name}.partial"
        scratch.write_bytes(content)
        os.replace(scratch, out / name)


def save(model: MixtralForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write a whole Hugging Face checkpoint in bf16 under `out`, one atomic replacement per file."""
    served: Any = copy.deepcopy(model)
    served.to(torch.bfloat16)
    served.config.output_router_logits = False
    served.config.use_cache = True
    tokenizer_config = corpus.tokenizer_config(model.config.max_position_embeddings)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        served.save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    files["tokenizer.json"] = tokenizer.to_str(pretty=False).encode()
    files["tokenizer_config.json"] = (json.dumps(tokenizer_config, indent=2) + "\n").encode()
    write_atomically(out, files)


def build_model() -> MixtralForCausalLM:
    """A fresh model set up for training: load-balancing loss on, no cache, grouped matrix products for the experts."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(demo_config())
    model.set_experts_implementation("grouped_mm")  # 1.3 times the eager loop's speed on one Zen 4 thread
    model.config.output_router_logits = True
    model.config.use_cache = False
    return model.train()


def build_optimizer(model: MixtralForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def train_step(model: MixtralForCausalLM, optimizer: torch.optim.Optimizer, batch_BL: torch.Tensor, lr: float) -> float:
    """One update on one batch; returns its loss, the load-balancing term included."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=batch_BL, labels=batch_BL).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def train(out: Path, tokenizer: Tokenizer, data: Data, budget_s: float) -> None:
    """Train for `budget_s` seconds of steps, saving under `out` as it goes and at the end."""
    model, rng = build_model(), torch.Generator().manual_seed(0)
    optimizer, clock = build_optimizer(model), TrainingClock(budget_s)
    short = batches(data.train_N, data.starts, SHORT_LEN, rng)
    long = batches(data.train_N, data.starts, LONG_LEN, rng)
    step, next_save_s, recent = 0, min(60.0, budget_s / 2), 0.0
    while clock.progress < 1.0:
        began = time.monotonic()
        batch_BL = next(long if clock.progress >= LONG_FROM else short)
        loss = train_step(model, optimizer, batch_BL, learning_rate(clock.progress))
        clock.add(time.monotonic() - began)
        step, recent = step + 1, loss if step == 0 else 0.95 * recent + 0.05 * loss
        if step % LOG_EVERY == 0:
            tokens_per_s = step * TOKENS_PER_STEP / max(clock.spent_s, 1e-9)
            print(f"step {step}  {clock.progress:.1%}  loss {recent:.3f}  {tokens_per_s:.0f} tok/s", flush=True)
        if clock.spent_s >= next_save_s or clock.progress >= 1.0:
            save(model, tokenizer, out)
            next_save_s = clock.spent_s + SAVE_EVERY_S
            watched = card.score(model, data.watched).per_token
            print(f"saved {out} at step {step}; held-out loss {watched:.3f} per token", flush=True)
            progress = {"steps": step, "tokens": step * TOKENS_PER_STEP, "training_s": round(clock.spent_s)}
            write_atomically(out, {"training.json": json.dumps(progress).encode()})


def main() -> None:
    """Parse the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m manta.demo.recipe", description="Train the demo model.")
    parser.add_argument("out", type=Path, help="folder for the checkpoint; made if missing")
    parser.add_argument("--minutes", type=float, default=75.0, help="training time, pauses left out (default 75)")
    parser.add_argument("--finish", action="store_true", help="do not train: score OUT and write its README.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = corpus.read_corpus()
    if arguments.finish:
        card.write_card(arguments.out, texts)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = corpus.train_tokenizer(texts.train.values())
    data = encode(tokenizer, texts)
    print(f"{len(texts.train)} files, {len(data.train_N)} tokens; {len(texts.held_out)} files held out", flush=True)
    train(arguments.out, tokenizer, data, arguments.minutes * 60)


if __name__ == "__main__":
    main()
