"""Who is let in, checked before anything else looks at a request. Plain ASGI: it adds nothing to a stream.

With API keys, a request needs one. Without, the service is open to its own machine only, and a browser on it takes
orders from strangers: their pages may post to any address, and give theirs a name that leads here (DNS rebinding).
"""

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ApiError, forbidden, short, unauthorized, unsupported_media_type
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
        if scope["type"] != "http" or _is_open(scope) or self._is_known(_bearer_token(scope)):
            await self._app(scope, receive, send)
            return
        error = unauthorized("A valid API key is needed: send the header `Authorization: Bearer <key>`.")
        self._metrics.failures[error.code] += 1
        await error.response()(scope, receive, send)

    def _is_known(self, token: bytes) -> bool:
        # Every key is compared, so that the time taken tells nothing about which one came close.
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        return any(matches)


class HostGuard:
    """Lets a request in when it is meant for this machine and no page of a stranger has made it.

    Its Host, and its Origin if a browser names one, must be a loopback address, localhost, or one of `allowed_hosts`,
    or the Origin one of `allowed_origins` (`*`: any); what it posts must be said to be JSON, if it is said what it is.
    """

    def __init__(
        self, app: ASGIApp, allowed_hosts: Sequence[str], allowed_origins: Sequence[str], metrics: GatewayMetrics
    ) -> None:
        self._app = app
        self._origins = frozenset(allowed_origins)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        error = None if scope["type"] != "http" or _is_open(scope) else self._refusal(scope)
        if error is None:
            await self._app(scope, receive, send)
            return
        self._metrics.failures[error.code] += 1
        await error.response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        host, origin, content_type = (_header(scope, name) for name in (b"host", b"origin", b"content-type"))
        if "*" in self._origins or origin in self._origins:
            origin = ""
        for name, given in (("Host", f"//{host}" if host else ""), ("Origin", origin)):
            if given and not self._is_allowed(given):
                return forbidden(
                    f"{name} {short(given.removeprefix('//'))!r} is not this machine, and without api.keys_file "
                    "only its own clients are served. Name it in api.allowed_hosts, or use keys."
                )
        kind = content_type.partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind and kind != "application/json" and not kind.endswith("+json"):
            return unsupported_media_type(kind)
        return None

    def _is_allowed(self, url: str) -> bool:
        try:
            host = (urlsplit(url).hostname or "").lower()
        except ValueError:
            return False
        if host == "localhost" or host in self._hosts:
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) in OPEN_PATHS


def _bearer_token(scope: Scope) -> bytes:
    kind, _, token = _header(scope, b"authorization").partition(" ")
    return token.strip().encode("latin-1") if kind.lower() == "bearer" else b""


def _header(scope: Scope, name: bytes) -> str:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for each, value in headers if each == name), b"").decode("latin-1")
