"""What is sent: random prompts, made from a seed, the same for every target and fresh for every run.

Fresh prompts matter because a server may cache prefixes: a prompt sent twice would measure its cache.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

Prompt = list[int] | str


class WorkloadError(Exception):
    """The prompts cannot be made as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One run's requests: prompts (ids or text), how many tokens each asks for, how many are in flight at once."""

    prompts: tuple[Prompt, ...]
    output_len: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Makes prompts of `input_len` ids out of `ordinary_ids`; as text if `decode` is given."""

    ordinary_ids: tuple[int, ...]
    input_len: int
    seed: int
    decode: Callable[[list[int]], str] | None = None

    def prompts(self, label: str, count: int) -> tuple[Prompt, ...]:
        """`count` prompts; the same for the same seed and label, unrelated for any other."""
        rng = random.Random(f"{self.seed}/{label}")
        drawn = [rng.choices(self.ordinary_ids, k=self.input_len) for _ in range(count)]
        return tuple(drawn if self.decode is None else map(self.decode, drawn))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`. Raises WorkloadError where there is none or it cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise WorkloadError(f"no tokenizer.json in {folder}; give --tokenizer the checkpoint's folder")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise WorkloadError(f"{path} is not a tokenizer file: {error}") from error


def prompt_source(folder: Path, input_len: int, seed: int, *, as_text: bool) -> PromptSource:
    """A source over the tokenizer's ordinary ids: no special token, which a server may refuse or act upon.

    As text, a prompt decodes to what its ids say, and may encode to a few tokens more or fewer than `input_len`.
    """
    tokenizer = load_tokenizer(folder)
    special = set(tokenizer.get_added_tokens_decoder())
    ordinary = tuple(sorted(set(tokenizer.get_vocab().values()) - special))
    if not ordinary:
        raise WorkloadError(f"the tokenizer in {folder} has only special tokens: nothing to draw prompts from")
    return PromptSource(ordinary, input_len, seed, tokenizer.decode if as_text else None)
