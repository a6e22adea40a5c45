"""Every tokenizer, whatever its files declare where: ids, prompts and text as AutoTokenizer has them."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from checkpoint.writer import copy_tokenizer
from manta.local import LocalService
from protos.generation_pb2 import LENGTH, Sampling, SequenceOutput, Submit
from serving.tokenizer import TextCodec
from serving.tokenizer_files import TokenizerError, load_tokenizer
from tests.serving.odd_tokenizers import IM_END, ODD, write
from tests.serving.small_tokenizers import build_metaspace, train_byte_level
from training.encoding import load_encoder

ROOT = Path(__file__).parents[2]
VOCABULARY = 1 << 20
MARKERS = ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<|user|>", "<image>", "<a b>", "fox", " ", "\n", "▁", "<unk>"]
TEXTS = st.lists(st.sampled_from(MARKERS) | st.text(max_size=6), max_size=8).map("".join)


@pytest.fixture(scope="module", params=ODD)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("odd")
    ODD[request.param](directory)
    return directory


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def ours(directory: Path) -> TextCodec:
    return TextCodec.load(directory)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_texts_have_their_ids_and_ids_their_text(text: str, ours: TextCodec, theirs: Any) -> None:
    for special in (True, False):
        ids = asyncio.run(ours.encode(text, special))
        assert ids == theirs(text, add_special_tokens=special).input_ids
        for skip in (True, False):
            decoded = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == decoded
            stream = ours.detokenizer(skip)
            assert "".join([stream.push([token_id]) for token_id in ids]) + stream.finish() == decoded


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), opens=st.booleans())
def test_chats_have_their_prompts(texts: list[str], opens: bool, ours: TextCodec, theirs: Any) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    assert ours.chat_template is not None
    prompt = ours.chat_template.render(messages, add_generation_prompt=opens)
    assert prompt == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
    ids = asyncio.run(ours.encode(prompt, add_special_tokens=False))
    assert ids == theirs.apply_chat_template(messages, add_generation_prompt=opens, return_dict=False)


def test_what_begins_and_ends_a_text_is_theirs(directory: Path, theirs: Any) -> None:
    loaded = load_tokenizer(directory)
    assert loaded is not None
    assert (loaded.bos_id, loaded.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert loaded.special_tokens == theirs.special_tokens_map
    assert TextCodec.load(directory).special_ids == {
        token_id for token_id, token in theirs.added_tokens_decoder.items() if token.special
    }


class Recording:
    """In place of a model: notes what it is to continue."""

    prompts: ClassVar[list[list[int]]] = []

    def __init__(self, *given: object) -> None:
        pass

    def generate(self, submit: Submit) -> Iterator[SequenceOutput]:
        self.prompts.append(list(submit.prompt_ids))
        yield SequenceOutput(finish_reason=LENGTH)


@settings(max_examples=15, deadline=None)
@given(text=TEXTS.filter(str.strip))
def test_serving_training_and_generate_agree(text: str, directory: Path, ours: TextCodec, theirs: Any) -> None:
    ids = asyncio.run(ours.encode(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manta.local.LocalModel", Recording)
        list(LocalService(directory).generate(text, Sampling(max_tokens=1)))
    assert Recording.prompts.pop() == ids
    if theirs.eos_token_id is not None:
        encoder = load_encoder(directory, VOCABULARY)
        [document] = encoder.encode([text])
        assert document == (ids if encoder.adds_eos else [*ids, theirs.eos_token_id])


def test_a_copy_of_the_files_is_the_same_tokenizer(directory: Path, ours: TextCodec, tmp_path: Path) -> None:
    """What `manta export` and `manta extract` write beside the weights."""
    copy_tokenizer(directory, tmp_path)
    first, second = load_tokenizer(directory), load_tokenizer(tmp_path)
    assert first is not None
    assert second is not None
    assert (second.special_tokens, second.chat_template) == (first.special_tokens, first.chat_template)
    assert second.tokenizer.to_str() == first.tokenizer.to_str()
    assert second.tokenizer.encode_special_tokens == first.tokenizer.encode_special_tokens


def test_a_gateway_reads_its_tokenizer_without_torch(tmp_path: Path) -> None:
    write(tmp_path, train_byte_level())
    code = (
        "import sys; from pathlib import Path; from serving.tokenizer import TextCodec; "
        f"TextCodec.load(Path({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_two_ids_for_one_token_are_refused(tmp_path: Path) -> None:
    write(tmp_path, train_byte_level(), {"added_tokens_decoder": {"9000": IM_END}})
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: added_tokens_decoder says that '<\|im_end\|>'"):
        load_tokenizer(tmp_path)
    write(tmp_path, train_byte_level(), added_tokens={"<s>": 7})
    with pytest.raises(TokenizerError, match=r"added_tokens.json says that '<s>' is token 7, .* it is 0; give both"):
        load_tokenizer(tmp_path)


def test_text_that_is_sent_is_not_cleaned_up(tmp_path: Path) -> None:
    write(tmp_path, build_metaspace(), {"clean_up_tokenization_spaces": True})
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: clean_up_tokenization_spaces is true.*to false"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    write(tmp_path, train_byte_level())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name}: the file (is not|is UTF-16|does not hold|nests)"):
        load_tokenizer(tmp_path)


FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize("name", [*FILES, "tokenizer.model", "chat_template.jinja"])
def test_git_lfs_pointers_are_named(name: str, tmp_path: Path) -> None:
    """Copied again, it would be as before."""
    write(tmp_path, None if name == "tokenizer.model" else train_byte_level())
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 49132\n"
    )
    with pytest.raises(TokenizerError, match=rf"{name}: this is a git-lfs pointer.*`git lfs pull`") as caught:
        load_tokenizer(tmp_path)
    assert "opy" not in str(caught.value)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_other_codings_are_named(name: str, coding: str, tmp_path: Path) -> None:
    write(tmp_path, train_byte_level())
    text = (tmp_path / name).read_text() if (tmp_path / name).exists() else "{}"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding=coding)
    with pytest.raises(TokenizerError, match=rf"{name}: the file .*Save it as UTF-8 without a byte-order mark"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "tokenizer.model", "vocab.json", "chat_template.jinja"])
def test_what_is_no_file_is_not_passed_over(name: str, tmp_path: Path) -> None:
    """A model would be served without its tokenizer."""
    folder, pipe, link = (tmp_path / kind for kind in ("folder", "pipe", "link"))
    for directory in (folder, pipe, link):
        write(directory, None if name in ("tokenizer.json", "tokenizer.model", "vocab.json") else train_byte_level())
        (directory / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    os.mkfifo(pipe / name)
    (link / name).symlink_to("../../blobs/0123")
    for directory in (folder, pipe):
        with pytest.raises(TokenizerError, match=rf"{name} is a folder, or another thing that is no file; put"):
            load_tokenizer(directory)
    with pytest.raises(TokenizerError, match=rf"{name}: this is a link to a file that does not exist. .*`cp -rL`"):
        load_tokenizer(link)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"400": "x"}},
        {"added_tokens_decoder": []},
        {"eos_token": 7},
        {"extra_special_tokens": 7},
        {"tokenizer_object": "x"},
        {"padding_side": "up"},
    ],
)
def test_fields_that_cannot_be_followed_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, train_byte_level(), config)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json cannot be followed: .*; correct"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_template_that_is_no_text_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, train_byte_level())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes("grüß".encode("latin-1"))
    with pytest.raises(TokenizerError, match=rf"{name} is not UTF-8 text \(.*\); convert it"):
        load_tokenizer(tmp_path)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        write(tmp_path / name, train_byte_level())
        with (tmp_path / name / name).open("ab") as file:
            file.truncate(1 << 33)
        with pytest.raises(TokenizerError, match=rf"{name} has over 256 MiB"):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(
    "config", [None, {}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}]
)
def test_a_sentencepiece_model_alone(config: dict[str, Any] | None, tmp_path: Path) -> None:
    """Its ids and its special tokens, as AutoTokenizer has them: none are named in another file."""
    lines = ["the quick brown fox", "jumps over the lazy dog", "def f(x): return x + 1", "grüße aus köln"] * 20
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    write(tmp_path, None, config)
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    ours, theirs = TextCodec.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert (loaded.special_tokens["bos_token"], loaded.special_tokens["eos_token"], loaded.eos_id) == ("<s>", "</s>", 2)
    for text in ("the lazy fox", "  two  spaces", "def g(y):\n  return 2", "中 😀 ü", "</s> a <s>", ""):
        for special in (True, False):
            ids = asyncio.run(ours.encode(text, special))
            assert ids == theirs(text, add_special_tokens=special).input_ids, text
            assert ours.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True), text


def test_files_that_need_more_than_is_installed_say_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(TokenizerError, match=r"the package sentencepiece: `pip install .*`, or add a tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_alone_says_how_to_get_a_tokenizer(tmp_path: Path) -> None:
    """What the message says to do is done, and works."""
    model = json.loads(train_byte_level().to_str())["model"]
    write(tmp_path, None)
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    with pytest.raises(TokenizerError, match=r"has vocab.json, and no tokenizer.json.*GPT2Tokenizer.*save_pretrained"):
        load_tokenizer(tmp_path)
    from transformers import GPT2Tokenizer

    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    codec = TextCodec.load(tmp_path)
    assert codec.decode(asyncio.run(codec.encode("hello world 中"))) == "hello world 中"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path, train_byte_level(), {"chat_template": named})
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert loaded.chat_template == "yes"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("no")
    (tmp_path / "chat_template.jinja").write_text("from the file")
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert loaded.chat_template == "from the file"
