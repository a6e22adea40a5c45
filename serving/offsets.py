"""Where tokens begin in the text that a client gets: `text_offset` of /v1/completions, in characters."""

from collections.abc import Sequence

from serving.beside import beside
from serving.detokenizer import REPLACEMENT, Detokenizer
from serving.prompts import Prompt
from serving.tokenizer import TextCodec


class OutputOffsets:
    """Follows one output's text as it grows from `start` characters on.

    All parts of a character that spans several tokens begin where the character does; what follows one that is never
    finished begins after the U+FFFD in its place.
    """

    def __init__(self, detokenizer: Detokenizer, start: int = 0) -> None:
        self._detokenizer = detokenizer
        self._offset = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """Where each of the next tokens begins."""
        offsets: list[int] = []
        for token_id in token_ids:
            unfinished = self._detokenizer.unfinished
            piece = self._detokenizer.push((token_id,))
            given_up = unfinished and self._begins_given_up(piece)
            offsets.append(self._offset + len(REPLACEMENT) if given_up else self._offset)
            self._offset += len(piece)
        return offsets

    def _begins_given_up(self, piece: str) -> bool:
        """Whether what a token made certain begins with an unfinished character that it does not go on with."""
        # U+FFFD by itself is what the text says: its last byte has come.
        return piece.startswith(REPLACEMENT) and (len(piece) > len(REPLACEMENT) or self._detokenizer.unfinished)


async def echoed_offsets(prompts: Sequence[Prompt], codec: TextCodec, skip_special_tokens: bool) -> list[list[int]]:
    """See `prompt_offsets`; streams go on beside long prompts."""

    def find() -> list[list[int]]:
        return [prompt_offsets(prompt, codec, skip_special_tokens) for prompt in prompts]

    return await beside(find, sum(len(prompt.token_ids) for prompt in prompts))


def prompt_offsets(prompt: Prompt, codec: TextCodec, skip_special_tokens: bool) -> list[int]:
    """Where in an echoed prompt's text each of its tokens begins; 0 for all where there is no text."""
    text, token_ids = prompt.text, prompt.token_ids
    if text is None:
        return [0] * len(token_ids)
    if codec.decode(token_ids, skip_special_tokens) == text:
        return OutputOffsets(codec.detokenizer(skip_special_tokens)).push(token_ids)
    return _written_offsets(text, token_ids, codec)


def _written_offsets(text: str, token_ids: Sequence[int], codec: TextCodec) -> list[int]:
    """A special token counts where the client wrote it, and not where the tokenizer added it.

    Where the tokenizer's normalizer has changed the length of the text, offsets are near, and within it.
    """
    detokenizer, offset = codec.detokenizer(), 0
    offsets: list[int] = []
    for token_id in token_ids:
        offsets.append(min(offset, len(text)))
        piece = detokenizer.push((token_id,))
        if token_id in codec.special_ids:
            name = codec.token_name(token_id)
            piece += name if text.startswith(name, offset) else ""
        offset += len(piece)
    return offsets
