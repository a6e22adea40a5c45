"""The demo model's text: the running interpreter's standard library, its held-out split and its tokenizer.

Legend: V vocabulary.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
BOS, EOS, UNK = "<s>", "</s>", "<unk>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Tests exercise the code without being good style; the rest is data in the shape of Python, not code.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
)
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # made for one machine: they hold its paths
HELD_OUT_ONE_IN = 32


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and held-out texts, each a mapping from a file's name in the library to its source."""

    train: dict[str, str]
    held_out: dict[str, str]


def is_source(name: str) -> bool:
    """Whether `name`, a path relative to the library with forward slashes, belongs to the corpus."""
    parts = PurePosixPath(name).parts
    return (
        name.endswith(".py")
        and not SKIPPED_FOLDERS.intersection(parts[:-1])
        and not any(part.startswith(SKIPPED_PREFIXES) for part in parts)
    )


def is_held_out(name: str) -> bool:
    """Whether a file is kept from training: one in 32, chosen by the hash of its name, so that every machine agrees."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def read_corpus(library: Path | None = None) -> Corpus:
    """Read the sources under `library` (default: the running interpreter's standard library).

    Raises FileNotFoundError where the folder holds no Python source, as in an interpreter shipped as a zip file.
    """
    root = library or Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    texts = {name: (root / name).read_text("utf-8", errors="replace") for name in names if is_source(name)}
    if not texts:
        raise FileNotFoundError(
            f"no Python source under {root}; run the recipe with an interpreter that ships its library"
        )
    texts = {name: text for name, text in texts.items() if text.strip()}
    return Corpus(
        train={name: text for name, text in texts.items() if not is_held_out(name)},
        held_out={name: text for name, text in texts.items() if is_held_out(name)},
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` entries; ids 0, 1, 2 are <s>, </s>, <unk>, and encoding puts <s> first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return bpe


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """What `tokenizer_config.json` says, in the names that every transformers release since 4.34 reads."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Encode each text as one document: <s>, the text, </s>. Raises ValueError where the tokenizer knows no </s>."""
    eos = tokenizer.token_to_id(EOS)
    if eos is None:
        raise ValueError(f"the tokenizer has no {EOS}; make one with train_tokenizer()")
    return [[*encoding.ids, eos] for encoding in tokenizer.encode_batch(list(texts))]
