"""The gateway in a process of its own, before a generator that replays ids: what a hostile body does, it does to this.

python -m tests.fuzz.http_server     # prints its port
"""

import socket

import uvicorn

from serving.app import build_app
from serving.chat_template import ChatTemplate
from serving.fake import FakeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from tests.serving.small_tokenizers import TEMPLATE, train_byte_level

MODEL = "fuzzed"
VOCABULARY = 400
MAX_CONTEXT = 4096


def make_app():
    """The gateway with its default limits."""
    codec = TextCodec(train_byte_level(), ChatTemplate(TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}))
    settings = GatewaySettings(MODEL, MAX_CONTEXT, (1,), VOCABULARY)
    return build_app(settings, codec, FakeGenerator(max_context=MAX_CONTEXT))


def main() -> None:
    """Serves until it is killed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(make_app(), log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
