"""Scores a checkpoint on the held-out files and writes its model card.

Legend: B sequences (here always one), L tokens, V vocabulary.
"""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import MixtralForCausalLM

from manta.demo import corpus
from manta.demo.curve import loss_curve
from training.metrics import read_metrics

CHUNK = 1024
TRAINING_LENGTH = 512  # data.sequence_length of train.yaml
SAMPLE_PROMPTS = (
    "def fibonacci(n):",
    "def read_lines(path):\n    with open(path) as file:\n",
    "class Reader:\n    def __init__(self, path):\n        self.path = path\n\n    def read(self):\n",
)
SAMPLE_TOKENS = 48

# A table's row must be one line of Markdown, so the rows are put together here.
FACTS = {
    "architecture": "`MixtralForCausalLM`: 4 layers, hidden 256, 8 query and 2 key/value heads, "
    "8 experts of width 320, top-2",
    "parameters": "$parameters, of which $active work on any one token; input and output embeddings tied",
    "attention": "sliding window of 256 tokens, rotary positions up to 4096",
    "tokenizer": "byte-level BPE, 4096 entries, trained on the training files; "
    "`<s>` 0 starts a text, `</s>` 1 ends it, `<unk>` 2",
    "data": "the standard library of CPython $python: $train_files files, $train_mb MB of source",
    "left out": "test folders, `site-packages`, `encodings`, `pydoc_data`, files made for one machine",
    "held out": "$held_out_files files, $held_out_kb kB, chosen by the hash of their names",
    "training": "`manta train`: $steps steps of $step_tokens tokens ($train_tokens M tokens) in $minutes minutes by "
    "$workers workers of one thread each, which hold half of the experts each, on a processor that other work shared",
    "method": "AdamW, peak learning rate 2e-3, warm-up and cosine, gradients clipped at 1, load-balancing loss 0.02, "
    "computed in bf16; packed sequences of 512 tokens, attention within documents; each file as a whole, and again cut "
    "at its top-level definitions ([train.yaml](train.yaml))",
    "**held-out loss**": "**$loss nats per token, $bits_per_byte bits per byte** "
    "(bf16 weights, computed in fp32, each chunk of 1024 tokens alone)",
}
HEAD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [mixtral, moe, code]
---

# Manta's demo model

A Mixtral of $parameters_m M parameters, small enough to live in this repository ($size_mb MB in bf16) and trained for
real, so that a served completion looks like Python. It shows that Manta works; it is no coding assistant.

| | |
| --- | --- |
"""
TAIL = """
![Loss by step: each, and smoothed](loss.svg)

## Make it again

```
python -m manta.demo.recipe OUT
manta train OUT/train.yaml
python -m manta.demo.recipe OUT --finish       # scores it on the held-out files and writes this card
```

Another interpreter has another library, so its weights will differ.

## Samples

Greedy, at most $sample_tokens tokens, as they came, the bad ones too. "⟨" stands where the prompt ends.

$samples

## Limits

- It has seen little text for a short time: it knows Python's look, not its meaning. Greedy decoding soon repeats
  itself.
- It has seen no conversation. The chat template writes `role: content` lines and `assistant:`, and the answer is what
  a file that held these lines might go on with.
- Its training text is public source with names and addresses of authors in comments; it may repeat such lines.

## Licence

The weights are under Apache-2.0, as this repository is. They were trained on the Python standard library, which is
under the PSF licence (https://docs.python.org/3/license.html) and is not part of this folder.
"""
CARD = Template(HEAD + "".join(f"| {name} | {fact} |\n" for name, fact in FACTS.items()) + TAIL)


@dataclass(frozen=True, slots=True)
class Score:
    """Summed negative log-likelihood in nats, and over how many tokens."""

    nats: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    def bits_per_byte(self, num_bytes: int) -> float:
        """Bits per byte of a text of `num_bytes` that this score covers: comparable across tokenizers."""
        return self.nats / math.log(2) / num_bytes


def score(model: MixtralForCausalLM, documents: Sequence[Sequence[int]]) -> Score:
    """Score every token after each document's first; a chunk of 1024 tokens does not see the chunks before it."""
    was_training = model.training
    nats, num_tokens = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for document in documents:
            for start in range(1, len(document), CHUNK):
                ids_BL = torch.tensor([document[start - 1 : start + CHUNK]])
                logits_LV = model(input_ids=ids_BL, output_router_logits=False).logits[0, :-1].float()
                nats += float(torch.nn.functional.cross_entropy(logits_LV, ids_BL[0, 1:], reduction="sum"))
                num_tokens += ids_BL.shape[1] - 1
    model.train(was_training)
    return Score(nats, num_tokens)


def sample(model: Any, tokenizer: Tokenizer, prompt: str) -> str:
    """Markdown of a prompt and its greedy continuation."""
    ids_BL = torch.tensor([tokenizer.encode(prompt).ids])
    output_BL = model.generate(
        ids_BL, attention_mask=torch.ones_like(ids_BL), do_sample=False, max_new_tokens=SAMPLE_TOKENS, pad_token_id=1
    )
    continuation = str(tokenizer.decode(output_BL[0, ids_BL.shape[1] :].tolist())).rstrip()
    return f"```python\n{prompt}⟨{continuation}\n```"


def num_active(model: MixtralForCausalLM) -> int:
    """Parameters that work on one token: all but the experts it is not sent to."""
    config = model.config
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    total = sum(p.numel() for p in model.parameters())
    return total - experts * (config.num_local_experts - config.num_experts_per_tok) // config.num_local_experts


def num_bytes(texts: Mapping[str, str]) -> int:
    """Bytes of all texts in UTF-8."""
    return sum(len(text.encode()) for text in texts.values())


def figures(out: Path, records: Sequence[Mapping[str, Any]], texts: corpus.Corpus) -> dict[str, object]:
    """Measure the checkpoint under `out`; returns what the card's blanks are filled with.

    Args:
        records: Of the run's metrics.
    """
    model = MixtralForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    step_tokens = TRAINING_LENGTH * records[0]["samples_seen"]
    held_out = score(model, corpus.encode_documents(tokenizer, texts.held_out.values()))
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": f"{parameters:,}",
        "parameters_m": f"{parameters / 1e6:.1f}",
        "active": f"{num_active(model):,}",
        "size_mb": f"{(out / 'model.safetensors').stat().st_size / 1e6:.1f}",
        "python": platform.python_version(),
        "train_files": len(texts.train),
        "train_mb": f"{num_bytes(texts.train) / 1e6:.1f}",
        "held_out_files": len(texts.held_out),
        "held_out_kb": f"{num_bytes(texts.held_out) / 1e3:.0f}",
        "steps": len(records),
        "step_tokens": step_tokens,
        "train_tokens": f"{TRAINING_LENGTH * records[-1]['samples_seen'] / 1e6:.1f}",
        "minutes": f"{sum(step_tokens / record['tokens_per_s'] for record in records) / 60:.0f}",
        "workers": records[-1]["workers"],
        "loss": f"{held_out.per_token:.3f}",
        "bits_per_byte": f"{held_out.bits_per_byte(num_bytes(texts.held_out)):.3f}",
        "samples": "\n\n".join(sample(model, tokenizer, prompt) for prompt in SAMPLE_PROMPTS),
        "sample_tokens": SAMPLE_TOKENS,
    }


def write_card(out: Path, run: Path, texts: corpus.Corpus) -> None:
    """Scores the checkpoint under `out` and writes its README.md, with the loss curve of the run that made it."""
    records = read_metrics(run)
    (out / "loss.svg").write_text(loss_curve([record["loss"] for record in records], "loss, nats per token"))
    (out / "README.md").write_text(CARD.substitute(figures(out, records, texts)))
