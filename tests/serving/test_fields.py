"""Every request field is honoured, refused or without an effect, and docs/api.md says which."""

import inspect
import json
import logging
from typing import Annotated, Any, get_args, get_origin

import httpx
import openai.resources.chat.completions as chat_resource
import openai.resources.completions as completion_resource
import pytest

from serving.fake import FakeGenerator
from serving.fields import NO_EFFECT, REFUSED
from serving.fields_reference import TARGET, honoured, reference
from serving.schemas import ChatBody, CompletionBody
from tests.serving.conftest import MODEL, Serve, Served

BODIES = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": "hello", "max_tokens": 2},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
}
CLIENTS = {
    "/v1/completions": completion_resource.Completions,
    "/v1/chat/completions": chat_resource.Completions,
}
# The fields of vLLM's requests as its sources have them in late 2026.
OF_VLLM = """
    model stream stream_options n seed stop max_tokens temperature top_p top_k min_p frequency_penalty presence_penalty
    repetition_penalty logit_bias stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids bad_words logprobs
    prompt_logprobs logprob_token_ids use_beam_search length_penalty watermarking response_format structured_outputs
    priority request_id session_id echo add_special_tokens user return_tokens_as_token_ids return_token_ids
    return_token_offsets return_mm_kwargs routed_experts_prompt_start cache_salt kv_transfer_params ec_transfer_params
    vllm_xargs repetition_detection thinking_token_budget stream_interval
"""
OF_VLLM_ALONE = {
    "/v1/completions": "prompt suffix prompt_embeds",
    "/v1/chat/completions": """
        messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls reasoning_effort
        include_reasoning add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
        media_io_kwargs mm_processor_kwargs return_prompt_text
    """,
}
CLIENT = httpx.Client(timeout=20)  # making one takes longer than a request
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(FakeGenerator())


def refusal(served: Served, path: str, change: dict[str, Any]) -> dict[str, Any]:
    response = CLIENT.post(served.url + path, json=REQUESTS[path] | change)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_the_page_is_up_to_date() -> None:
    page = TARGET.read_text(encoding="utf-8")
    assert page == reference(page), "run `make docs`"


@pytest.mark.parametrize("path", BODIES)
def test_each_field_has_one_fate(path: str) -> None:
    fields = set(BODIES[path].model_fields)
    assert not fields & NO_EFFECT.keys()
    assert not REFUSED.keys() & NO_EFFECT.keys()
    assert fields & REFUSED.keys() == set() if path.endswith("chat/completions") else {"echo"}


def test_each_field_that_is_honoured_says_what_it_does() -> None:
    assert [name for name, meaning in honoured().items() if not meaning.endswith(".")] == []


def scalars(path: str) -> list[tuple[str, str]]:
    """Each field of a body that takes one number, or one truth value: its name, and which."""
    kinds = {int: "number", float: "number", bool: "truth"}
    found: list[tuple[str, str]] = []
    for name, field in BODIES[path].model_fields.items():
        for each in get_args(field.annotation) or (field.annotation,):
            inner = get_args(each)[0] if get_origin(each) is Annotated else each
            if inner in kinds:
                found.append((name, kinds[inner]))
    return found


@pytest.mark.parametrize("path", BODIES)
def test_no_type_of_json_stands_for_another(served: Served, path: str) -> None:
    fields = scalars(path)
    assert {"n", "temperature", "seed", "top_k", "best_of", "priority", "stream", "ignore_eos"} <= dict(fields).keys()
    for name, kind in fields:
        for given in (True, False, "1") if kind == "number" else (0, 1.0, "true"):
            error = refusal(served, path, {name: given})
            assert error["param"] == name, (name, given, error)
    for given in (True, "1"):
        for change in ({"logit_bias": {"5": given}}, {"stop_token_ids": [given]}, {"allowed_token_ids": [given]}):
            assert refusal(served, path, change)["param"].startswith(next(iter(change))), change


@pytest.mark.parametrize("path", BODIES)
def test_a_whole_number_may_be_written_with_a_point(served: Served, path: str) -> None:
    change = {"n": 2.0, "seed": 7.0, "top_k": -1.0, "max_tokens": 2.0, "priority": 1.0, "best_of": 2.0, "stream": False}
    response = httpx.post(served.url + path, json=REQUESTS[path] | change, timeout=20)
    assert response.status_code == 200, response.text
    assert len(response.json()["choices"]) == 2
    assert refusal(served, path, {"n": 1.5})["param"] == "n"


def test_one_and_true_are_not_the_same_wish(served: Served) -> None:
    for name, given in (("length_penalty", True), ("stream_interval", True), ("use_beam_search", 0)):
        assert refusal(served, "/v1/completions", {name: given})["param"] == name


@pytest.mark.parametrize("path", CLIENTS)
def test_every_parameter_of_the_openai_client_is_known(path: str) -> None:
    parameters = set(inspect.signature(CLIENTS[path].create).parameters) - OF_THE_CLIENT
    assert parameters - BODIES[path].model_fields.keys() - REFUSED.keys() - NO_EFFECT.keys() == set()


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_vllm_is_known(path: str) -> None:
    known = BODIES[path].model_fields.keys() | REFUSED.keys() | NO_EFFECT.keys()
    assert {*OF_VLLM.split(), *OF_VLLM_ALONE[path].split()} - known == set()


@pytest.mark.parametrize("path", BODIES)
def test_a_field_that_is_refused_says_what_to_do(served: Served, path: str) -> None:
    for name in REFUSED.keys() - BODIES[path].model_fields.keys():
        error = refusal(served, path, {name: {"a": "value"}})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert REFUSED[name].instead in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_values_that_ask_for_nothing_and_fields_without_effect(served: Served, path: str) -> None:
    neutral = {name: refused.neutral[-1] if refused.neutral else None for name, refused in REFUSED.items()}
    anything = {name: {"a": ["value", 1]} for name in NO_EFFECT}
    response = httpx.post(served.url + path, json={**neutral, **anything, **REQUESTS[path]}, timeout=20)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", [*BODIES, "/tokenize", "/detokenize"])
def test_an_unknown_field_is_refused(served: Served, path: str) -> None:
    body = {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [5]}} | REQUESTS
    response = httpx.post(served.url + path, json={**body[path], "temprature": None}, timeout=20)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    if path in BODIES:
        assert "did you mean temperature?" in error["message"]


def test_unknown_names_are_short_in_the_message_and_leave_nothing(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            error = refusal(served, "/v1/completions", {f"{index}" * 1_000_000: 1})
            assert len(json.dumps(error)) < 400
    assert caplog.records == []


def test_options_of_a_stream(served: Served) -> None:
    for options, param in (({"include_obfuscation": True}, "include_obfuscation"), ({"usage": True}, "usage")):
        error = refusal(served, "/v1/completions", {"stream": True, "stream_options": options})
        assert error["param"] == f"stream_options.{param}"
    response = httpx.post(
        f"{served.url}/v1/completions",
        json=REQUESTS["/v1/completions"] | {"stream": True, "stream_options": {"include_obfuscation": False}},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(("path", "prefix"), [("/v1/completions", "cmpl-"), ("/v1/chat/completions", "chatcmpl-")])
def test_a_request_names_its_answer(served: Served, path: str, prefix: str) -> None:
    response = httpx.post(served.url + path, json=REQUESTS[path] | {"request_id": "job-7:a.b"})
    assert response.json()["id"] == response.headers["x-request-id"] == f"{prefix}job-7:a.b"
    for wrong in ("", "a" * 129, "a\r\nx-evil: 1", "a\n", "é"):
        assert refusal(served, path, {"request_id": wrong})["param"] == "request_id"
