"""What the tests of training data share: a tokenizer directory, and stores of given documents."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from training.tokens import Origin, TokenStore, TokenWriter

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
NUM_SPECIAL = 2
VOCABULARY = NUM_SPECIAL + 256


def make_tokenizer(directory: Path, adds_bos: bool = True, **config: object) -> Path:
    """Writes a tokenizer of bytes: id 2 + i is byte i of the byte-level alphabet, sorted."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([BOS, EOS])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS} | config))
    return directory


def make_origin(vocab_size: int = 100) -> Origin:
    return Origin("f" * 32, "t" * 64, vocab_size, EOS_ID, ({"path": "texts"},))


def make_store(
    directory: Path, documents: Sequence[Sequence[int]], tasks: Sequence[str] = (), vocab_size: int = 100
) -> TokenStore:
    writer = TokenWriter(directory, vocab_size, with_tasks=bool(tasks))
    for index, document in enumerate(documents):
        writer.write(np.array(document, np.uint32), np.array([len(document)]), tasks[index : index + 1])
    return writer.finish(make_origin(vocab_size))
