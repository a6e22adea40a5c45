"""Bodies that are made to cost much: the first wrong thing ends the work, and errors stay short."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from serving.bodies import Bodies, count_openings, parse_body
from serving.errors import ApiError, shown, unknown_model
from serving.fake import FakeGenerator
from serving.schemas import ChatBody, ChatMessage, CompletionBody, DetokenizeBody, TokenizeBody
from serving.settings import GatewaySettings, RequestLimits
from tests.serving.conftest import Serve

LIMITS = RequestLimits()
KINDS = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)
NEEDED: dict[type[BaseModel], dict[str, Any]] = {
    CompletionBody: {"prompt": "x"},
    ChatBody: {"messages": [{"role": "user", "content": "x"}]},
    TokenizeBody: {"prompt": "x"},
    DetokenizeBody: {"tokens": [1]},
}
MANY = 2000
HOSTILE: dict[str, object] = {
    "numbers": [1.5] * MANY,
    "negative": [-1] * MANY,
    "nulls": [None] * MANY,
    "objects": [{}] * MANY,
    "mapping": {f"key {index}": None for index in range(MANY)},
    "numbered": {str(-index): -1e9 for index in range(1, MANY)},
}


def refusal(data: bytes, kind: type[BaseModel], limits: RequestLimits = LIMITS) -> ApiError | None:
    try:
        parse_body(data, kind, limits)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("kind", KINDS)
def test_no_field_makes_an_error_of_each_of_its_entries(kind: type[BaseModel], hostile: str) -> None:
    for name in kind.model_fields:
        error = refusal(json.dumps(NEEDED[kind] | {name: HOSTILE[hostile]}).encode(), kind)
        if error is not None and isinstance(error.__cause__, ValidationError):
            assert error.__cause__.error_count() <= 3, name  # one for each kind of value that the field may have


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", [*ChatMessage.model_fields, "name"])
def test_no_part_of_a_message_does_either(name: str, hostile: str) -> None:
    messages = [{"role": "user", "content": "x", name: HOSTILE[hostile]}] * 2
    error = refusal(json.dumps({"messages": messages}).encode(), ChatBody)
    assert error is None or not isinstance(error.__cause__, ValidationError) or error.__cause__.error_count() <= 3


def test_a_body_of_empty_lists_is_not_parsed() -> None:
    error = refusal(b'{"prompt":[' + b"[]," * 200_000 + b"[]]}", CompletionBody)
    assert error is not None
    assert error.status == 400
    assert str(LIMITS.max_json_containers) in error.message
    assert error.__cause__ is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_a_body_in_another_encoding_is_told_so(encoding: str) -> None:
    error = refusal('{"prompt": "é"}'.encode(encoding), CompletionBody)
    assert error is not None
    assert "send JSON in UTF-8" in error.message


def test_a_byte_order_mark_may_precede_a_body() -> None:
    assert parse_body('{"prompt": "é"}'.encode("utf-8-sig"), CompletionBody, LIMITS).prompt == "é"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_a_compressed_body_is_refused_by_its_name(serve: Serve, path: str) -> None:
    url = serve(FakeGenerator()).url + path
    for encoding in ("gzip", "deflate, br", "x" * 5000):
        response = httpx.post(url, content=b"\x1f\x8b\x08\x00", headers={"Content-Encoding": encoding})
        assert response.status_code == 415
        message = response.json()["error"]["message"]
        assert message.startswith(f"Content-Encoding '{encoding[:70]}"), message
        assert len(message) < 300
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "tokens": [3]}
    name = "tokens" if path == "/detokenize" else "messages" if "chat" in path else "prompt"
    assert httpx.post(url, json={name: body[name]}, headers={"Content-Encoding": "Identity"}).status_code == 200


def test_brackets_in_text_are_text() -> None:
    text = 'quoted: \\" [{' * 60_000 + "\\"
    assert parse_body(json.dumps({"prompt": text}).encode(), CompletionBody, LIMITS).prompt == text


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.text('ab"\\[{', max_size=6) | st.integers(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\{', max_size=3), inner, max_size=4),
    )
)
def test_lists_and_objects_are_counted_as_a_parser_does(value: Any) -> None:
    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(map(count, value.values()))
        return 1 + sum(map(count, value)) if isinstance(value, list) else 0

    assert count_openings(json.dumps(value).encode(), enough=-1) == count(value)


def test_biases_beyond_the_limit_are_counted_and_not_looked_at() -> None:
    few = RequestLimits(max_logit_bias=3)
    bias = {str(index): 1 for index in range(3)}
    assert parse_body(json.dumps({"prompt": "", "logit_bias": bias}).encode(), CompletionBody, few).logit_bias
    error = refusal(json.dumps({"prompt": "", "logit_bias": {**bias, "x": "y"}}).encode(), CompletionBody, few)
    assert error is not None
    assert error.message == "logit_bias: 4 were asked for, at most 3 are allowed."


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "", "logit_bias": {"k" * 100_000: 1}},
        {"prompt": "", "stop": [["s" * 100_000]]},
        {"prompt": "", "temperature": "t" * 100_000},
        {"prompt": "", "stream_options": {"o" * 100_000: "v" * 100_000}},
        {"prompt": "", "seed": {"a" * 100_000: {"b" * 100_000: ["c" * 100_000] * 3}}},
    ],
)
def test_errors_repeat_little_of_what_was_sent(body: dict[str, Any]) -> None:
    error = refusal(json.dumps(body).encode(), CompletionBody)
    assert error is not None
    assert len(error.param or "") <= 80
    assert len(error.body()) < 500


def test_a_long_model_name_is_cut() -> None:
    assert len(unknown_model("m" * 1_000_000, "served").message) < 200


def test_a_picture_of_a_large_value_costs_little() -> None:
    class Counted(dict[int, int]):
        looked_at = 0

        def items(self) -> Any:
            for pair in super().items():
                Counted.looked_at += 1
                yield pair

    assert len(shown(Counted.fromkeys(range(10_000), 1))) <= 80
    assert Counted.looked_at < 20
    assert shown([1, "a"]) == "[1, 'a']"


@pytest.mark.parametrize(
    ("length", "status"), [("9" * 5000, 413), ("1048577", 413), ("\u00b2", 400), ("-1", 400), ("x", 400)]
)
def test_declared_lengths(length: str, status: int) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{", "more_body": False}

    headers = [(b"content-length", length.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(ApiError) as caught:
        asyncio.run(Bodies(GatewaySettings("m", 64, limits=LIMITS)).read(request, CompletionBody))
    assert caught.value.status == status


def test_the_largest_of_too_many_bodies_is_refused() -> None:
    """Slow clients with large bodies keep a small one out no more than each other's; nothing of them stays held."""
    limits = RequestLimits(max_body_bytes=500, max_bodies_bytes=1000)
    bodies, left = Bodies(GatewaySettings("m", 64, limits=limits)), asyncio.Event()

    def arriving(*parts: bytes, rest: bool) -> Request:
        given = iter(parts)

        async def receive() -> dict[str, Any]:
            part = next(given, None)
            if part is None:
                await left.wait()
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": rest}

        return Request({"type": "http", "method": "POST", "headers": []}, receive)

    async def status(request: Request) -> int:
        try:
            await bodies.read(request, TokenizeBody)
        except ApiError as error:
            return error.status
        return 200

    async def crowd() -> list[int]:
        slow = [asyncio.ensure_future(status(arriving(b" " * size, rest=True))) for size in (300, 500, 190)]
        await asyncio.sleep(0)
        honest = [await status(arriving(b'{"prompt": "a word"}', rest=False)) for _ in range(3)]
        refused, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert refused == {slow[1]}
        left.set()
        return [*honest, *(await asyncio.gather(*slow))]

    assert asyncio.run(asyncio.wait_for(crowd(), 10)) == [200, 200, 200, 400, 429, 400]
    assert bodies.num_bytes == 0


def test_two_of_the_largest_bodies_fit_however_small_the_bound_is() -> None:
    """A request without a body, or with a small one, does not have a large one refused that is alone otherwise."""
    limits = RequestLimits(max_body_bytes=1000, max_bodies_bytes=100)
    bodies = Bodies(GatewaySettings("m", 64, limits=limits))

    def request(*parts: bytes, rest: bool) -> Request:
        given = list(parts)

        async def receive() -> dict[str, Any]:
            if not given:
                await asyncio.sleep(60)
            part = given.pop(0)
            return {"type": "http.request", "body": part, "more_body": rest or bool(given)}

        return Request({"type": "http", "method": "POST", "headers": []}, receive)

    async def both() -> str:
        others = [asyncio.ensure_future(bodies.read(request(b" " * 999, rest=True), TokenizeBody))]
        others.append(asyncio.ensure_future(bodies.read(request(rest=True), TokenizeBody)))
        await asyncio.sleep(0)
        body = await bodies.read(request(b'{"prompt": "', b"a" * 900, b'"}', rest=False), TokenizeBody)
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        assert bodies.num_bytes == 0
        return str(body.prompt)

    assert asyncio.run(asyncio.wait_for(both(), 10)) == "a" * 900
