"""Clients of a gateway or a service: one that asks, and one that reads an honest stream beside it."""

import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.fuzz.asgi import Answer

CLIENT_TIMEOUT_S = 120.0
BROKEN, LEFT = 0, -1  # instead of a status: the connection broke; the client had no more patience
REFUSED_PAUSE_S = 0.1  # of the stream's client, after an answer of 429
JSON = {"content-type": "application/json"}
CHUNK_BYTES = 1 << 16


class Client:
    """Opens a connection for each request.

    Args:
        patience_s: It leaves a request that takes longer; None: that is a fault of the service's.
    """

    def __init__(self, host: str, port: int, patience_s: float | None = None) -> None:
        self.address = (host, port)
        self._patience_s = patience_s

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = JSON, query: bytes = b""
    ) -> Answer:
        """Sends a request and takes the whole answer; its status may be BROKEN or LEFT."""
        limit_s = CLIENT_TIMEOUT_S if self._patience_s is None else self._patience_s
        connection = http.client.HTTPConnection(*self.address, timeout=limit_s)
        target = quote(path, safe="/%") + ("?" + quote(query, safe="=&%") if query else "")
        try:
            connection.request(method, target, body, {name: text for name, text in headers.items() if name != "host"})
            return _read(connection.getresponse(), time.monotonic() + limit_s)
        except TimeoutError:
            return Answer(LEFT, b"") if self._patience_s else Answer(BROKEN, f"no answer for {limit_s:g} s".encode())
        except (OSError, http.client.HTTPException) as error:
            return Answer(BROKEN, f"{type(error).__name__}: {error}".encode())
        finally:
            connection.close()

    def post(self, path: str, body: bytes) -> Answer:
        """The same, of a JSON body."""
        return self.ask("POST", path, body)


def _read(answer: http.client.HTTPResponse, deadline_s: float) -> Answer:
    parts: list[bytes] = []
    while part := answer.read1(CHUNK_BYTES):
        parts.append(part)
        if time.monotonic() > deadline_s:
            raise TimeoutError
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return Answer(answer.status, b"".join(parts))


class Stream:
    """A context in which a client reads one stream after the other, and notes how long it waited for each token."""

    def __init__(self, host: str, port: int, body: Mapping[str, object]) -> None:
        self._address = (host, port)
        self._body = json.dumps({**body, "stream": True}).encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_again_and_again)
        self._gaps: deque[tuple[float, float]] = deque()  # when a token came, and how long after the one before
        self._last_s: float | None = None  # when the newest token came; None between two streams
        self._failures: deque[str] = deque()
        self.num_tokens = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(CLIENT_TIMEOUT_S)

    def longest_gap_s(self, since_s: float) -> float:
        """The longest time between two tokens of one stream, of those that ended since then (of `time.monotonic`).

        One that has not ended counts too. What was before is forgotten.
        """
        while self._gaps and self._gaps[0][0] < since_s:
            self._gaps.popleft()
        last_s = self._last_s
        open_s = 0.0 if last_s is None else time.monotonic() - last_s
        return max([open_s, *(length_s for _, length_s in list(self._gaps))])

    def take_failures(self) -> list[str]:
        """What went wrong with streams since this was asked last."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def _read_again_and_again(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPConnection(*self._address, timeout=CLIENT_TIMEOUT_S)
            try:
                connection.request("POST", "/v1/completions", self._body, JSON)
                self._read(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                self._failed(f"{type(error).__name__}: {error}")
            finally:
                self._last_s = None
                connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        if answer.status == 429:
            self._over.wait(REFUSED_PAUSE_S)
        elif answer.status != 200:
            self._failed(f"{answer.status}: {answer.read()[:300]!r}")
        while not self._over.is_set() and (line := answer.readline()):
            if line.startswith(b'data: {"error"'):
                self._failed(line.decode())
            elif line.startswith(b"data: {"):
                self._token()

    def _token(self) -> None:
        now_s, last_s = time.monotonic(), self._last_s
        if last_s is not None:
            self._gaps.append((now_s, now_s - last_s))
        self._last_s = now_s
        self.num_tokens += 1

    def _failed(self, words: str) -> None:
        self._failures.append(words)
        self._over.wait(REFUSED_PAUSE_S)
