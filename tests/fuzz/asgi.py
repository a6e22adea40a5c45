"""An ASGI application, called in this process: no sockets, no threads, one event loop."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEADERS = {"host": "127.0.0.1:8000", "content-type": "application/json"}
TIME_LIMIT_S = 300.0


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """Its body, parsed."""
        return json.loads(self.body)


class InProcess:
    """Calls `app`, one request at a time."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()

    def post(self, path: str, body: bytes, headers: Mapping[str, str] = HEADERS) -> Answer:
        """Sends a request and takes its whole response. Whatever the application raises is raised."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call("POST", path, body, headers), TIME_LIMIT_S))

    async def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await asyncio.Event().wait()  # the client stays
            raise AssertionError("nothing sets that event")

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        (start,) = [message for message in sent if message["type"] == "http.response.start"]
        assert not sent[-1].get("more_body"), "the response was not finished"
        return Answer(start["status"], b"".join(message.get("body", b"") for message in sent))


def check_shape(answer: Answer) -> None:
    """Asserts that a response is no failure of the server's, and that an error has OpenAI's shape and words."""
    assert answer.status < 500, f"{answer.status}: {answer.body[:300]!r}"
    if answer.status >= 400:
        error = answer.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, answer.body[:300]
        assert isinstance(error["message"], str), answer.body[:300]
        assert error["message"], answer.body[:300]
        assert isinstance(error["code"], str), answer.body[:300]
