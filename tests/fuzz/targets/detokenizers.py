"""Ids give the same text however they are cut; of byte-level vocabularies, that of decoding them all at once."""

from serving.tokenizer import TextCodec
from tests.fuzz.material import Material
from tests.serving.small_tokenizers import build_metaspace, build_sentencepiece_like, train_byte_level

TOKENIZERS = [train_byte_level(), build_sentencepiece_like(), build_metaspace()]
CODECS = [TextCodec(tokenizer) for tokenizer in TOKENIZERS]
BEYOND = 3  # ids without a token: a model's vocabulary may be larger than its tokenizer's


def one(data: bytes) -> None:
    material = Material(data)
    which, skip, continues, size = material.number(3), material.flag(), material.flag(), 1 + material.number(4)
    codec, vocabulary = CODECS[which], TOKENIZERS[which].get_vocab_size() + BEYOND
    ids = [material.number(vocabulary) for _ in range(64) if material.left]
    cut = _stream(codec, ids, size, skip, continues)
    assert cut == _stream(codec, ids, 1, skip, continues), f"pieces of {size} ids give another text"
    if which == 0 and not continues:
        assert cut == codec.decode(ids, skip_special_tokens=skip)


def _stream(codec: TextCodec, ids: list[int], size: int, skip: bool, continues: bool) -> str:
    detokenizer = codec.detokenizer(skip, continues)
    return "".join(detokenizer.push(ids[at : at + size]) for at in range(0, len(ids), size)) + detokenizer.finish()
