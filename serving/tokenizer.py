"""Text to token ids and back, for one checkpoint directory."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from serving.beside import in_thread
from serving.chat_template import ChatTemplate, ChatTemplateError
from serving.detokenizer import ByteDetokenizer, Detokenizer, NoDetokenizer, WindowDetokenizer
from serving.pieces import PieceTable, piece_table, special_ids
from serving.splitting import SplittingTokenizer
from serving.tokenizer_files import TokenizerError, load_tokenizer

# Below this in all, encoding takes less than a millisecond: a hop to a thread and back would cost more than it saves.
THREAD_FROM_CHARS = 4096


class NoTokenizer(ValueError):
    """Text was given to, or asked of, a model that has no tokenizer."""


class TextCodec:
    """Encodes, decodes and renders chats.

    A checkpoint may lack a tokenizer (then only token ids can be exchanged) or a chat template.
    """

    def __init__(self, tokenizer: Tokenizer | None, chat_template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self._pieces: PieceTable | None = None
        self._splitting: SplittingTokenizer | None = None
        self._word_ids: list[int] = []  # what stands for the text before an output
        self.special_ids = frozenset[int]() if tokenizer is None else special_ids(tokenizer)
        if tokenizer is not None:
            self._pieces = piece_table(tokenizer)
            if self._pieces is None:
                self._word_ids = _word_ids(tokenizer)

    @classmethod
    def load(cls, directory: Path) -> "TextCodec":
        """Reads the tokenizer and the chat template of a Hugging Face directory, which may have neither.

        Raises TokenizerError when its files cannot be used.
        """
        loaded = load_tokenizer(directory)
        if loaded is None:
            return cls(None)
        source = loaded.chat_template
        try:
            template = ChatTemplate(source, loaded.special_tokens) if source else None
        except ChatTemplateError as error:
            raise TokenizerError(f"{directory}: {error}; correct or remove it") from error
        return cls(loaded.tokenizer, template)

    @property
    def has_tokenizer(self) -> bool:
        """False: prompts must be token ids, and answers carry ids only."""
        return self._tokenizer is not None

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds. Raises NoTokenizer."""
        [token_ids] = await self.encode_all([text], add_special_tokens)
        return token_ids

    async def encode_all(
        self,
        texts: Sequence[str],
        add_special_tokens: bool = True,
        check: Callable[[list[int]], None] | None = None,
        split_special_tokens: bool = False,
    ) -> list[list[int]]:
        """Token ids of several texts; see `encode`. What `check` raises of those of one text ends the work.

        With `split_special_tokens` those that a text holds are written out.
        """
        tokenizer = self._required()

        def encode_each() -> list[list[int]]:
            # One at a time: while it is made, an encoding takes a hundred times the memory of its text. Unlike
            # `encode`, `encode_batch_fast` lets go of the interpreter lock: the event loop goes on streaming.
            all_ids: list[list[int]] = []
            chosen = self.splitting().plain if split_special_tokens else tokenizer
            for text in texts:
                [encoding] = chosen.encode_batch_fast([text], add_special_tokens=add_special_tokens)
                all_ids.append(encoding.ids)
                if check is not None:
                    check(all_ids[-1])
            return all_ids

        if sum(map(len, texts)) < THREAD_FROM_CHARS and not split_special_tokens:
            return encode_each()
        return await in_thread(encode_each)

    def splitting(self) -> SplittingTokenizer:
        """Writes special tokens out. The first call copies the tokenizer, for which a thread is the place."""
        if self._splitting is None:
            self._splitting = SplittingTokenizer(self._required())
        return self._splitting

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Raises NoTokenizer."""
        return self._required().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = True, continues: bool = False) -> Detokenizer:
        """A fresh incremental decoder; `continues`: the text follows a prompt, so its leading space is meant."""
        if self._tokenizer is None:
            return NoDetokenizer()
        if self._pieces is None:
            return WindowDetokenizer(self._tokenizer, skip_special_tokens, self._word_ids if continues else ())
        return ByteDetokenizer(self._pieces, skip_special_tokens, continues)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself, special tokens as their names; b"" without a tokenizer."""
        if self._pieces is not None:
            return self._pieces.piece(token_id)
        if self._tokenizer is None:
            return b""
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def token_name(self, token_id: int) -> str:
        """The token as the vocabulary spells it; "" for an id without a token."""
        return self._required().id_to_token(token_id) or ""

    def _required(self) -> Tokenizer:
        if self._tokenizer is None:
            raise NoTokenizer(
                "This model has no tokenizer: send the prompt as token ids, and set return_token_ids to get ids back"
            )
        return self._tokenizer


def _word_ids(tokenizer: Tokenizer) -> list[int]:
    """The first token that is a word (or part of one) by itself, as a list; empty if there is none."""
    ids = range(tokenizer.get_vocab_size())
    return next(([token_id] for token_id in ids if tokenizer.decode([token_id]).isalnum()), [])
