"""What a gateway adds to its settings where it starts; the deployment itself runs in tests/integration."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from serving.deployment import GatewayDeploymentSettings, GatewayPart, created_s
from serving.fake import FakeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec


def test_gateways_of_the_same_files_agree_when_the_model_was_created(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    os.utime(config, (1_700_000_000.9, 1_700_000_000.9))
    settings = GatewayDeploymentSettings(
        tmp_path, GatewaySettings("m", max_context=8), recovery_timeout_s=1.0, answer_timeout_s=1.0
    )
    for _ in range(2):
        model = asyncio.run(models_of(settings))["data"][0]
        assert model["created"] == model["permission"][0]["created"] == 1_700_000_000


async def models_of(settings: GatewayDeploymentSettings) -> dict[str, Any]:
    gateway = SimpleNamespace(
        _settings=settings,
        _codec=TextCodec(None),
        _generator=FakeGenerator(),
        _membership=SimpleNamespace(announce=lambda *what: None),
        _ready=None,
    )
    app = GatewayPart.__serve_build_asgi_app__(gateway)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return (await client.get("/v1/models")).json()


def test_a_model_without_config_was_created_now(tmp_path: Path) -> None:
    assert abs(created_s(tmp_path) - time.time()) < 60
    (tmp_path / "file").touch()
    assert abs(created_s(tmp_path / "file") - time.time()) < 60, "no directory"
