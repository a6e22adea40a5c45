"""Words that an answer must not hold, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import invalid, shown
from serving.prompts import check_ids, encode_texts
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec

MAX_TOKENS = 32  # of one word; what nodes allow
MAX_CHARS = 256  # of one word
NUM_FORMS = 2  # at most, of one word: at the beginning of a text, and after a blank


@dataclass(frozen=True)
class BadWordIds:
    """The tokens of all words, one word after the other, and how many each has."""

    token_ids: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


async def encode_bad_words(words: Sequence[str], codec: TextCodec, settings: GatewaySettings) -> BadWordIds:
    """Each word as it is written at the beginning of a text and, if that begins with another token, after a blank.

    As in vLLM: the second only where it has as many tokens. Raises ApiError (400) for a word that is empty or too long.
    """
    if not words:
        return BadWordIds()
    bare = [word.lstrip() for word in words]
    for word, text in zip(words, bare, strict=True):
        if not text or len(text) > MAX_CHARS:
            raise _refused(word, f"a word has 1 to {MAX_CHARS} characters, blanks before it not counted")
    ids = await encode_texts([*bare, *(f" {text}" for text in bare)], codec, settings, False, "bad_words")
    forms: list[list[int]] = []
    for word, first, after_blank in zip(words, ids, ids[len(bare) :], strict=False):
        if not 0 < len(first) <= MAX_TOKENS:
            raise _refused(word, f"a word has 1 to {MAX_TOKENS} tokens")
        forms.append(first)
        if len(after_blank) == len(first) and after_blank[0] != first[0]:
            forms.append(after_blank)
    token_ids = tuple(token_id for form in forms for token_id in form)
    check_ids(token_ids, settings, "bad_words")
    return BadWordIds(token_ids, tuple(map(len, forms)))


def _refused(word: str, allowed: str) -> Exception:
    return invalid(f"bad_words: {allowed} (given: {shown(word)}).", "bad_words")
