"""Without keys, only this machine's own clients are served: no page of a stranger, and no name that leads here."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from serving.fake import FakeGenerator
from tests.serving.conftest import Serve, Served

BODY = '{"prompt": "hello", "max_tokens": 1}'
JSON = {"Content-Type": "application/json"}


def post(served: Served, headers: Mapping[str, str], path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(served.url + path, content=BODY, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        JSON,
        {"Content-Type": "Application/JSON; charset=utf-8"},
        {"Content-Type": "application/vnd.api+json"},
        {"Host": "localhost"},
        {"Host": "LocalHost:8000"},
        {"Host": "127.8.8.8:1"},
        {"Host": "[::1]:8000"},
        {"Host": "llm.example.org:443"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://llm.example.org"},
    ],
)
def test_let_in(serve: Serve, headers: dict[str, str]) -> None:
    served = serve(FakeGenerator(), allowed_hosts=("LLM.example.org",))
    assert post(served, headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 403, "host_not_allowed"),
        ({"Host": "evil.example:8000"}, 403, "host_not_allowed"),
        ({"Host": "localhost.evil.example"}, 403, "host_not_allowed"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "host_not_allowed"),
        ({"Host": "localhost@evil.example"}, 403, "host_not_allowed"),
        ({"Host": "[::1"}, 403, "host_not_allowed"),
        ({"Host": "[::ffff:10.0.0.1]"}, 403, "host_not_allowed"),
        ({"Host": "10.0.0.1"}, 403, "host_not_allowed"),
        ({"Host": "x" * 4000}, 403, "host_not_allowed"),
        ({"Origin": "https://evil.example"} | JSON, 403, "host_not_allowed"),
        ({"Origin": "null"} | JSON, 403, "host_not_allowed"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Content-Type": "text/" + "x" * 4000}, 415, "unsupported_media_type"),
    ],
)
def test_kept_out(serve: Serve, headers: dict[str, str], status: int, code: str) -> None:
    served = serve(FakeGenerator())
    response = post(served, headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert len(error["message"]) < 300
    assert not served.generator.submits


@pytest.mark.parametrize("origins", [("https://chat.example",), ("*",)])
def test_pages_that_may_use_the_api(serve: Serve, origins: tuple[str, ...]) -> None:
    served = serve(FakeGenerator(), cors_origins=origins)
    assert post(served, JSON | {"Origin": "https://chat.example"}).status_code == 200
    other = post(served, JSON | {"Origin": "https://chat.example.evil"})
    assert other.status_code == (200 if origins == ("*",) else 403)
    assert post(served, JSON | {"Origin": "https://chat.example", "Host": "evil.example"}).status_code == 403


def test_every_path_but_health(serve: Serve) -> None:
    served = serve(FakeGenerator())
    foreign: Any = {"headers": {"Host": "evil.example"}}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        assert httpx.get(served.url + path, **foreign).status_code == 403
    assert httpx.get(served.url + "/health", **foreign).status_code == 200


def test_with_keys_a_key_is_enough(serve: Serve) -> None:
    served = serve(FakeGenerator(), api_keys=("a-key-of-ours-16",))
    headers = {"Authorization": "Bearer a-key-of-ours-16", "Host": "llm.example.org", "Origin": "https://x.example"}
    assert post(served, headers).status_code == 200
    assert post(served, {"Host": "localhost"} | JSON).status_code == 401
