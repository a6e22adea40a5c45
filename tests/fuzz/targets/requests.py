"""Any body gets an answer: what was asked for, or an error in OpenAI's shape that is the client's fault."""

import json

from serving.app import build_app
from serving.chat_template import ChatTemplate
from serving.fake import FakeGenerator
from serving.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serving.settings import GatewaySettings, RequestLimits
from serving.tokenizer import TextCodec
from serving.unsupported import REFUSED
from tests.fuzz.asgi import InProcess, check_shape
from tests.fuzz.material import Material
from tests.serving.small_tokenizers import TEMPLATE, train_byte_level

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
BODIES = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)
FIELDS = sorted({name for body in BODIES for name in body.model_fields})
VALUES = (
    "null", "true", "false", "0", "-1", "1", "2", "1e308", "4294967295", "4294967296", "18446744073709551615", "0.5",
    "[]", "{}", '""', '"a"', "[1,2]", '["a"]', "[[1]]", '{"5":1}', '{"include_usage":true}', "\\ud83d", "\\u0000",
    '[{"role":"user","content":"a"}]', '{"type":"text"}', "NaN", "[[[[[[[[", '"role"', '"content"', ",",
)  # fmt: skip
WORDS = tuple(f'"{name}":'.encode() for name in (*FIELDS, *sorted(REFUSED))) + tuple(word.encode() for word in VALUES)
MODEL = "fuzzed"
SMALL = RequestLimits(max_n=4, max_prompts=4, max_sequences=8)
STOP_ID = 1

_generator = FakeGenerator(eos_token_ids=frozenset({STOP_ID}), max_context=32)
_codec = TextCodec(train_byte_level(), ChatTemplate(TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}))
_settings = GatewaySettings(MODEL, max_context=32, eos_token_ids=(STOP_ID,), vocab_size=400, limits=SMALL)
_app = InProcess(build_app(_settings, _codec, _generator))


def one(data: bytes) -> None:
    material = Material(data)
    path = PATHS[material.number(len(PATHS))]
    answer = _app.post(path, material.rest())
    check_shape(answer)
    if answer.status == 200 and not answer.body.startswith(b"data: "):
        json.loads(answer.body)
    assert _generator.running == 0, "a sequence was left behind"
    _generator.submits.clear()
