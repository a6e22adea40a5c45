"""A tokenizer, a chat template, and the real app behind a real socket with a generator that replays ids."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from openai import OpenAI
from tokenizers import Tokenizer

from serving.app import build_app
from serving.chat_template import ChatTemplate
from serving.fake import FakeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from tests.serving.small_tokenizers import TEMPLATE, build_sentencepiece_like, train_byte_level

MODEL = "mixtral-test"


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return train_byte_level()


@pytest.fixture(scope="session")
def sentencepiece_like() -> Tokenizer:
    return build_sentencepiece_like()


@pytest.fixture(scope="session")
def codec(byte_level: Tokenizer) -> TextCodec:
    return TextCodec(byte_level, ChatTemplate(TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}))


@dataclass
class Served:
    """The app under uvicorn, and what it was built with."""

    url: str
    generator: FakeGenerator
    codec: TextCodec
    settings: GatewaySettings

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "unused", "max_retries": 0, "timeout": 20, **options})

    def ids(self, text: str) -> list[int]:
        return asyncio.run(self.codec.encode(text, add_special_tokens=False))


Serve = Callable[..., Served]


@pytest.fixture
def serve(codec: TextCodec) -> Iterator[Serve]:
    """serve(generator, codec=..., ready=..., **settings) -> Served; stopped when the test ends."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(generator: FakeGenerator, codec: TextCodec = codec, app_options: Any = None, **changes: Any) -> Served:
        options = {"model_name": MODEL, "max_context": 512, "eos_token_ids": (1,), "vocab_size": 400, "created": 7}
        settings = GatewaySettings(**(options | changes))
        app = build_app(settings, codec, generator, **(app_options or {}))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Served(f"http://127.0.0.1:{port}", generator, codec, settings)

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join(10)
