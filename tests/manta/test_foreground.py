"""The request that is shown once a service is ready: its own gateway answers it."""

import asyncio
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.app import gateway_settings
from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import DEMO, spec_for_model
from manta.foreground import ready_message
from serving.app import build_app
from serving.fake import FakeGenerator
from serving.tokenizer import TextCodec

DEMO_DIRECTORY = spec_for_model(DEMO).model.directory
BY_TASK = {"level": "task", "tasks": ["C++ & co.", "it's prose"]}


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("routing", [None, BY_TASK, {"level": "sentence", "positions": 32}])
def test_the_request_to_try_is_answered(tmp_path: Path, has_tokenizer: bool, routing: dict[str, Any] | None) -> None:
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | ({"manta_routing": routing} if routing else {})))
    if has_tokenizer:
        shutil.copy(DEMO_DIRECTORY / "tokenizer.json", tmp_path)
    choice = asyncio.run(answer(tmp_path))["choices"][0]
    assert len(choice["text"] if has_tokenizer else choice["token_ids"]) > 0
    assert ("token_ids" in choice) != has_tokenizer


async def answer(directory: Path) -> dict[str, Any]:
    """What a gateway of the model in `directory` says to the curl that is printed."""
    spec = spec_for_model(str(directory))
    text = ready_message(spec, "http://localhost", 1.0)
    command = shlex.split(text[text.index("curl") : text.index("Ctrl-C")])
    body, url = command[command.index("-d") + 1], command[1]
    app = build_app(
        gateway_settings(resolve(spec, Room((2.0,), own=True))).gateway, TextCodec.load(directory), FakeGenerator()
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("fields", "dtype", "words"),
    [
        ({"dtype": "float16"}, "auto", ["float16 and computed in float32", "--dtype bfloat16"]),
        ({"dtype": "float16"}, "bfloat16", []),
        ({"dtype": "bfloat16"}, "auto", []),
        ({"eos_token_id": None}, "auto", ["names the token that ends a text", "generation_config.json"]),
    ],
)
def test_what_a_checkpoint_leaves_open_is_said(
    tmp_path: Path, fields: dict[str, object], dtype: str, words: list[str]
) -> None:
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    text = ready_message(spec_for_model(str(tmp_path), {"model.dtype": dtype}), "http://gateway", 1.0)
    assert [word for word in words if word not in text] == []
    assert ("Note:" in text) == bool(words)
