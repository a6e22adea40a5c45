"""The Gateway Serve deployment: the OpenAI API over the attention nodes."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import FastAPI
from ray import serve

from model.config import CONFIG_FILE
from serving.app import build_app
from serving.nodes import NodeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from transport.link import ANSWER_TIMEOUT_S
from transport.membership import Join
from transport.worker import freeze_garbage


@dataclass(frozen=True)
class GatewayDeploymentSettings:
    """What the service file says about gateways, resolved.

    Args:
        directory: Where the tokenizer is.
    """

    directory: Path
    gateway: GatewaySettings
    recovery_timeout_s: float
    answer_timeout_s: float = ANSWER_TIMEOUT_S


def created_s(directory: Path) -> int:
    """When the model in `directory` was made: the Unix time, in whole seconds, of its config.json.

    Unlike the time of a gateway's start, it is the same at all gateways that read the same files, before and after
    they are replaced. Where the file cannot be looked at, it is now.
    """
    try:
        return int((directory / CONFIG_FILE).stat().st_mtime)
    except OSError:
        return int(time.time())


class GatewayPart:
    """Validates, applies the chat template, tokenizes, streams. Stateless: any replica serves any request."""

    async def __init__(self, settings: GatewayDeploymentSettings, join: Join, *parts: object) -> None:
        del parts  # routers and nodes: named here so that Serve starts them; reached over the data plane
        self._settings = settings
        self._codec = TextCodec.load(settings.directory)
        self._membership = join()
        self._generator = NodeGenerator(self._membership, settings.recovery_timeout_s, settings.answer_timeout_s)
        freeze_garbage()

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Set here because what `_settings` holds decides which gateways a change of the service replaces.
        settings = replace(self._settings.gateway, created=created_s(self._settings.directory))
        app = build_app(settings, self._codec, self._generator, ready=self._ready)
        self._membership.announce("gateway", None, app.state.metrics.snapshot)
        return app

    async def _ready(self) -> bool:
        return self._generator.ready

    async def __del__(self) -> None:
        if hasattr(self, "_generator"):  # else it was not loaded
            self._membership.leave()
            self._generator.close()


# Kept by name: see router/deployment.py. What `ingress` puts around it is Serve's own.
Gateway = serve.deployment(name="Gateway")(serve.ingress()(GatewayPart))
