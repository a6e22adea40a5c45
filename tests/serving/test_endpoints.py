"""Models, tokens, health."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import serving.app
from manta import __version__
from serving.app import installed_version
from serving.fake import FakeGenerator
from serving.settings import GatewaySettings
from tests.serving.conftest import MODEL, Serve


def test_models(serve: Serve) -> None:
    served = serve(FakeGenerator(), model_name="org/mixtral")
    client = served.client()
    [model] = client.models.list().data
    assert (model.id, model.object, model.created, model.owned_by) == ("org/mixtral", "model", 7, "manta")
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 512
    assert client.models.retrieve("org/mixtral").id == "org/mixtral"


def test_tokenize_and_back(serve: Serve) -> None:
    served = serve(FakeGenerator())
    text = "hello 中 world" * 1000  # long enough for the thread
    answer = httpx.post(served.url + "/tokenize", json={"prompt": text, "model": MODEL}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    assert answer["token_strs"] is None
    back = httpx.post(served.url + "/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}


def test_tokenize_a_chat(serve: Serve) -> None:
    served = serve(FakeGenerator())
    body = {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
    answer = httpx.post(served.url + "/tokenize", json=body).json()
    assert answer["token_strs"][0] == "<s>"
    assert served.codec.decode(answer["tokens"], skip_special_tokens=False) == "<s>user: hi\nassistant:"


def test_health_follows_the_check(serve: Serve) -> None:
    state = {"ready": False}

    async def ready() -> bool:
        return state["ready"]

    served = serve(FakeGenerator(), app_options={"ready": ready})
    assert httpx.get(served.url + "/health").status_code == 503
    state["ready"] = True
    assert httpx.get(served.url + "/health").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/version", "/load", "/metrics", "/v1/models", f"/v1/models/{MODEL}"])
def test_head_is_get_without_a_body(serve: Serve, path: str) -> None:
    served = serve(FakeGenerator())
    got, asked = httpx.get(served.url + path), httpx.head(served.url + path)
    assert asked.status_code == got.status_code == 200
    assert asked.content == b""
    assert asked.headers.get("content-length") == got.headers.get("content-length")
    assert httpx.head(served.url + "/v1/models/other").status_code == 404


def test_version(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(FakeGenerator())
    assert httpx.get(served.url + "/version").json() == {"version": installed_version()}
    assert installed_version() in ("unknown", __version__)
    monkeypatch.setattr(serving.app, "DISTRIBUTION", "no-such-distribution")
    assert installed_version() == "unknown"


def test_load_counts_requests_that_generate(serve: Serve) -> None:
    served = serve(FakeGenerator(delay_s=0.005))
    with served.client().completions.create(model=MODEL, prompt="a", max_tokens=500, n=3, stream=True) as stream:
        next(iter(stream))
        assert httpx.get(served.url + "/load").json() == {"server_load": 1}
    deadline_s = time.monotonic() + 10
    while httpx.get(served.url + "/load").json() != {"server_load": 0}:
        assert time.monotonic() < deadline_s


def test_the_docs_know_the_bodies(serve: Serve) -> None:
    served = serve(FakeGenerator())
    described = httpx.get(served.url + "/openapi.json").json()

    def found(reference: str) -> Any:
        value = described
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]
        return value

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        for part in value if isinstance(value, list) else ():
            yield from references(part)

    assert len([found(reference) for reference in references(described)]) >= 6
    content = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    assert "messages" in found(content["application/json"]["schema"]["$ref"])["properties"]


def test_the_gateway_starts_without_torch_ray_and_transformers() -> None:
    code = "import sys, serving.app; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("wrong", [{"model_name": ""}, {"max_context": 0}, {"api_keys": ("",)}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="|".join(wrong)):
        GatewaySettings(**({"model_name": "m", "max_context": 1} | wrong))
