"""API keys, checked before anything else looks at a request. Plain ASGI: it adds nothing to a stream."""

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import unauthorized
from serving.metrics import GatewayMetrics

OPEN_PATHS = ("/health",)  # load balancers and Kubernetes probe without a key


class KeyGuard:
    """Lets a request in when it carries one of `api_keys` as its bearer token."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], metrics: GatewayMetrics) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http" or self._is_open(scope) or self._is_known(_bearer_token(scope)):
            await self._app(scope, receive, send)
            return
        error = unauthorized("A valid API key is needed: send the header `Authorization: Bearer <key>`.")
        self._metrics.failures[error.code] += 1
        await error.response()(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "")) in OPEN_PATHS

    def _is_known(self, token: bytes) -> bool:
        # Every key is compared, so that the time taken tells nothing about which one came close.
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        return any(matches)


def _bearer_token(scope: Scope) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    value = next((value for name, value in headers if name == b"authorization"), b"")
    kind, _, token = value.partition(b" ")
    return token.strip() if kind.lower() == b"bearer" else b""
