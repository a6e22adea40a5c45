"""Web pages of other origins: off by default; the origins of the service file may ask, keys or not."""

import httpx
import pytest

from serving.fake import FakeGenerator
from tests.serving.conftest import MODEL, Serve

ORIGIN = "https://chat.example"
ASKS = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
COMPLETION = {"model": MODEL, "prompt": "a", "max_tokens": 1}


def test_off_by_default(serve: Serve) -> None:
    served = serve(FakeGenerator())
    asked = httpx.options(served.url + "/v1/completions", headers=ASKS)
    assert asked.status_code == 403  # without keys no page of another origin is served at all
    answer = httpx.post(served.url + "/v1/completions", json=COMPLETION, headers={"Origin": ORIGIN})
    for response in (asked, answer):
        assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("origins", [(ORIGIN, "http://localhost:3000"), ("*",)])
def test_origins_that_may(serve: Serve, origins: tuple[str, ...]) -> None:
    served = serve(FakeGenerator(), cors_origins=origins, api_keys=("sk-one",))
    allowed = {ORIGIN, "*"}
    asked = httpx.options(served.url + "/v1/completions", headers=ASKS)  # a browser asks without a key
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] in allowed
    assert "authorization" in asked.headers["access-control-allow-headers"]
    refused = httpx.post(served.url + "/v1/completions", json=COMPLETION, headers={"Origin": ORIGIN})
    headers = {"Origin": ORIGIN, "Authorization": "Bearer sk-one"}
    answer = httpx.post(served.url + "/v1/completions", json={**COMPLETION, "stream": True}, headers=headers)
    assert (refused.status_code, answer.status_code) == (401, 200)
    for response in (refused, answer):
        assert response.headers["access-control-allow-origin"] in allowed
        assert "access-control-allow-credentials" not in response.headers
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]


def test_other_origins_may_not(serve: Serve) -> None:
    served = serve(FakeGenerator(), cors_origins=(ORIGIN,))
    asked = httpx.options(served.url + "/v1/completions", headers=ASKS | {"Origin": "https://evil.example"})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
