"""A real HTTP server that speaks just enough of the completions API, and fails in the ways that servers do."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN_S = 0.002


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def token(text: str, finish_reason: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason, **more}]})


def asked_for(body: dict[str, Any], index: int) -> dict[str, Any]:
    """What a chunk holds beside its text: the token's id is its index plus the prompt's first."""
    logprobs = {"top_logprobs": [{"a": -0.25, "b": -0.75}]} if body.get("logprobs") else None
    ids = {"token_ids": [body["prompt"][0] + index]} if body.get("return_token_ids") else {}
    return {"logprobs": logprobs, **ids}


@dataclass
class FakeServer:
    """`fault` says what goes wrong with every second request: refuse, drop, error, early, silent, or nothing."""

    fault: str = ""
    with_usage: bool = True
    models: tuple[str, ...] | None = ("m",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0

    async def list_models(self, request: Request) -> Response:
        if self.models is None:
            return JSONResponse({"error": {"message": "no such page"}}, 404)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        fault = self.fault if len(self.bodies) % 2 == 0 else ""
        if fault == "refuse":
            return JSONResponse({"error": {"message": "the queue is full", "type": "overloaded"}}, 429)
        return StreamingResponse(self._stream(body, fault), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], fault: str) -> AsyncIterator[bytes]:
        count: int = body["max_tokens"]
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            for index in range(count // 2 if fault else count):
                await asyncio.sleep(TOKEN_S)
                yield token(f" {index}", "length" if index == count - 1 else None, **asked_for(body, index))
            if fault == "drop":
                raise ConnectionError("the server was killed")
            if fault == "error":
                yield event({"error": {"message": "expert 3 is gone", "code": 503}})
            if fault == "silent":
                await asyncio.sleep(30)
        finally:
            self._at_once -= 1
        if self.with_usage and not fault:
            yield event({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 1}})
        if fault != "early":
            yield b"data: [DONE]\n\n"

    def __enter__(self) -> str:
        """Start on a free port; returns its URL."""
        routes = [Route("/v1/models", self.list_models), Route("/v1/completions", self.complete, methods=["POST"])]
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        # Of asyncio's own loop, whose timers are never early: uvloop's count whole milliseconds.
        config = uvicorn.Config(
            Starlette(routes=routes), loop="asyncio", log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline, "the fake server did not start"
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
