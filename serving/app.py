"""The OpenAI-compatible HTTP API as an ASGI application. No Ray, no torch: any generator will do."""

import logging
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from serving import tokenization
from serving.access import HostGuard, KeyGuard
from serving.bodies import Bodies
from serving.errors import ApiError, short, unknown_model
from serving.exposition import merge_and_render
from serving.gateway import Gateway
from serving.generator import Generator
from serving.metrics import GatewayMetrics
from serving.openapi import body_docs, describe_bodies
from serving.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serving.settings import GatewaySettings
from serving.shared import Shared
from serving.tokenizer import TextCodec

LOG = logging.getLogger(__name__)
PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DISTRIBUTION = "manta-moe"
BODIES = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)

ReadyCheck = Callable[[], Awaitable[bool]]


def installed_version() -> str:
    """The version of the installed package; "unknown" where the sources run without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


async def always_ready() -> bool:
    """The readiness of a gateway that depends on nothing else."""
    return True


def build_app(
    settings: GatewaySettings,
    tokenizer: TextCodec,
    generator: Generator,
    *,
    ready: ReadyCheck = always_ready,
    metrics: GatewayMetrics | None = None,
) -> FastAPI:
    """The application. `ready` decides about /health; `metrics` may be shared with who answers other gateways."""
    gateway = Gateway(settings, tokenizer, generator, metrics or GatewayMetrics(), Bodies(settings))
    app = FastAPI(title="Manta", summary="Experts as services", separate_input_output_schemas=False)
    app.state.metrics = gateway.metrics
    _add_generation(app, gateway)
    _add_tokenization(app, gateway)
    _add_models(app, settings)
    _add_observation(app, gateway, ready)
    _add_errors(app, gateway.metrics)
    describe_bodies(app, BODIES)
    if settings.api_keys:
        app.add_middleware(KeyGuard, api_keys=settings.api_keys, metrics=gateway.metrics)
    else:
        app.add_middleware(
            HostGuard,
            allowed_hosts=settings.allowed_hosts,
            allowed_origins=settings.cors_origins,
            metrics=gateway.metrics,
        )
    if settings.cors_origins:  # outermost: a browser asks first, without a key, and reads refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After", "X-Request-Id"),
        )
    return app


def _add_generation(app: FastAPI, gateway: Gateway) -> None:
    app.post("/v1/completions", openapi_extra=body_docs(CompletionBody))(gateway.complete)
    app.post("/v1/chat/completions", openapi_extra=body_docs(ChatBody))(gateway.chat)


def _add_tokenization(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/tokenize", openapi_extra=body_docs(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text or a chat, and how many the model can take."""
        return await tokenization.tokenize(gateway, request)

    @app.post("/detokenize", openapi_extra=body_docs(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        """The text of token ids, special tokens included."""
        return await tokenization.detokenize(gateway, request)


def _add_models(app: FastAPI, settings: GatewaySettings) -> None:
    model = _describe(settings)

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def list_models() -> Response:
        """The one model that is served."""
        return JSONResponse({"object": "list", "data": [model]})

    @app.head("/v1/models/{model_id:path}", include_in_schema=False)
    @app.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Response:
        """The same, by name."""
        if model_id != settings.model_name:
            raise unknown_model(model_id, settings.model_name)
        return JSONResponse(model)


def _describe(settings: GatewaySettings) -> dict[str, Any]:
    permission = {
        "id": "modelperm-" + settings.model_name,
        "object": "model_permission",
        "created": settings.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": settings.model_name,
        "object": "model",
        "created": settings.created,
        "owned_by": "manta",
        "root": settings.model_name,
        "parent": None,
        "max_model_len": settings.max_context,
        "permission": [permission],
    }


def _add_observation(app: FastAPI, gateway: Gateway, ready: ReadyCheck) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """200 once requests can be served."""
        return Response(status_code=200 if await ready() else 503)

    @app.head("/version", include_in_schema=False)
    @app.get("/version")
    async def version() -> Response:
        """Manta's version."""
        return JSONResponse({"version": installed_version()})

    @app.head("/load", include_in_schema=False)
    @app.get("/load")
    async def load() -> Response:
        """How many requests this gateway is generating for: each gateway counts its own."""
        return JSONResponse({"server_load": gateway.metrics.running_requests})

    async def scrape() -> str | None:
        try:
            others = await gateway.generator.fleet_metrics()
        except Exception:
            LOG.exception("the fleet's metrics could not be gathered")
            return None
        return merge_and_render([gateway.metrics.snapshot(), *others], gateway.settings.model_name)

    scrapes = Shared(scrape)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics")
    async def metrics() -> Response:
        """All gateways and nodes together. 503 when they cannot be asked: a part would look like counters reset."""
        text = await scrapes.get()
        if text is None:
            return PlainTextResponse("The fleet's metrics could not be gathered.\n", 503)
        return PlainTextResponse(text, media_type=PROMETHEUS_TYPE)


def _add_errors(app: FastAPI, metrics: GatewayMetrics) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, ApiError)
        metrics.failures[error.code] += 1
        return error.response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{short(request.method, 20)} {short(request.url.path)}: {error.detail}."
        code = "not_found" if error.status_code == 404 else "http_error"
        response = ApiError(error.status_code, message, code=code).response()
        response.headers.update(error.headers or {})
        return response

    async def unexpected(request: Request, error: Exception) -> Response:
        del request, error  # Starlette logs it
        metrics.failures["internal"] += 1
        return ApiError(500, "Internal error of the gateway; its log has the details.", code="internal").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
