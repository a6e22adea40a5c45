"""Tokenizers made on the spot: byte-level BPE like the demo model's, and one that decodes like Mixtral's."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "def hello(self):\n    return 'world' # a comment\n" * 3,
    "The quick brown fox jumps over the lazy dog. STOP END hello world",
    "Grüße, 中文字符 und 😀😀 émoji – naïve",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def train_byte_level() -> Tokenizer:
    """Byte-level BPE, like the demo model's: 0 is <s>, 1 is </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def build_sentencepiece_like() -> Tokenizer:
    """BPE with byte fallback and Mixtral's own decoder."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set("".join(TEXTS[1].replace(" ", "▁"))))
    vocab = {word: i for i, word in enumerate([*words, *letters, "▁w", "lo", "▁the"])}
    merges = [("▁", "w"), ("l", "o")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def build_metaspace() -> Tokenizer:
    """Letters, and words with a space before them; its decoder leaves out the space before the first token of all."""
    vocab = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", "▁", *"Helowrd", "▁world", "Hello", "▁Hello"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer
