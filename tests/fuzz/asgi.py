"""An ASGI application, called in this process: no sockets, no threads, one event loop."""

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

HEADERS = {"host": "127.0.0.1:8000", "content-type": "application/json"}
TIME_LIMIT_S = 300.0

Result = TypeVar("Result")


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
        return self.call("POST", path, body, headers)

    def call(self, method: str, path: str, body: bytes, headers: Mapping[str, str], query: bytes = b"") -> Answer:
        """The same, of any method."""
        answer = self._run(self._call(method, path, body, headers, None, query))
        assert answer is not None
        return answer

    def post_all(self, requests: Sequence[tuple[str, bytes, int | None]]) -> list[Answer | None]:
        """Sends several at once. The third of each: after how many messages its client leaves, and gets None."""

        async def together() -> list[Answer | None]:
            return await asyncio.gather(
                *(self._call("POST", path, body, HEADERS, leaves) for path, body, leaves in requests)
            )

        return self._run(together())

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(asyncio.wait_for(work, TIME_LIMIT_S))

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        leaves_after: int | None,
        query: bytes = b"",
    ) -> Answer | None:
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": quote(path).encode(), "root_path": "", "query_string": query,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        left = asyncio.Event()
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(dict(message))  # a copy: a message that is kept counts as one that no client has read
            if len(sent) == leaves_after:
                left.set()

        if leaves_after == 0:
            left.set()
        await self._app(scope, receive, send)
        if left.is_set():
            return None
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
