"""Where tokens begin in the text that a client gets: `text_offset` of /v1/completions, in characters."""

from collections.abc import Sequence

from serving.detokenizer import Detokenizer
from serving.prompts import Prompt
from serving.tokenizer import NoTokenizer, TextCodec


class OutputOffsets:
    """Follows one output's text as it grows from `start` characters on.

    All parts of a character that spans several tokens begin where the character does.
    """

    def __init__(self, detokenizer: Detokenizer, start: int = 0) -> None:
        self._detokenizer = detokenizer
        self._offset = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """Where each of the next tokens begins."""
        offsets: list[int] = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push((token_id,)))
        return offsets


def prompt_offsets(prompt: Prompt, codec: TextCodec, skip_special_tokens: bool) -> list[int]:
    """Where in an echoed prompt's text each of its tokens begins; 0 for all where there is no text."""
    text, token_ids = prompt.text or "", prompt.token_ids
    try:
        decoded = codec.decode(token_ids, skip_special_tokens)
    except NoTokenizer:
        return [0] * len(token_ids)
    if decoded == text:
        return OutputOffsets(codec.detokenizer(skip_special_tokens)).push(token_ids)
    return _written_offsets(text, token_ids, codec)


def _written_offsets(text: str, token_ids: Sequence[int], codec: TextCodec) -> list[int]:
    """A special token counts where the client wrote it, and not where the tokenizer added it."""
    detokenizer, offset = codec.detokenizer(), 0
    offsets: list[int] = []
    for token_id in token_ids:
        offsets.append(offset)
        piece = detokenizer.push((token_id,))
        if token_id in codec.special_ids:
            name = codec.token_bytes(token_id).decode()
            piece += name if text.startswith(name, offset) else ""
        offset += len(piece)
    return offsets
