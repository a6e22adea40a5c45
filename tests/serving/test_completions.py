"""/v1/completions through the official client, over a real socket."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from tokenizers import processors

from serving.fake import FakeGenerator
from serving.generator import GenerationError
from serving.sampling import choice_seed
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve, Served
from tests.serving.small_tokenizers import train_byte_level

WORLD = "Grüße 😀 中文 hello world"


def world(serve: Serve, text: str = WORLD, **options: object) -> Served:
    served = serve(FakeGenerator(eos_token_ids=frozenset({1})), **options)
    served.generator.outputs = [[*served.ids(text), 1]]
    return served


def test_a_whole_answer(serve: Serve) -> None:
    served = world(serve)
    answer = served.client().completions.create(model=MODEL, prompt="hello", max_tokens=300)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == WORLD
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra == {"stop_reason": None}
    assert answer.usage is not None
    num_output = len(served.ids(WORLD)) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(served.ids("hello")), num_output)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + num_output
    submit = served.generator.submits[0]
    assert (submit.sequence_id, submit.sampling.temperature, submit.sampling.max_tokens) == (0, 1.0, 300)
    assert 0 <= submit.sampling.seed < 1 << 63


@pytest.mark.parametrize("tokens_per_message", [1, 3, 100])
def test_a_stream_adds_up(serve: Serve, tokens_per_message: int) -> None:
    served = world(serve)
    served.generator.tokens_per_message = tokens_per_message
    served.generator.delay_s = 0.002
    with served.client().completions.create(model=MODEL, prompt="a", max_tokens=300, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == WORLD
    assert not any("\ufffd" in chunk.choices[0].text for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert (len(chunks) == 2) == (tokens_per_message == 100)


def test_the_async_client_and_usage(serve: Serve) -> None:
    served = world(serve)

    async def collect() -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.completions.create(
                model=MODEL, prompt="a", max_tokens=5, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        assert [chunk.choices for chunk in chunks][-1] == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5
        assert chunks[-2].choices[0].finish_reason == "length"

    asyncio.run(collect())


def test_continuous_usage(serve: Serve) -> None:
    served = world(serve)
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = served.client().completions.create(
        model=MODEL, prompt="a", max_tokens=5, stream=True, extra_body={"stream_options": options}
    )
    counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(serve: Serve, stream: bool) -> None:
    served = world(
        serve,
        "say hello world and more",
    )
    for include, expected in ((False, "say hel"), (True, "say hello wo")):
        answer: Any = served.client().completions.create(
            model=MODEL,
            prompt="a",
            max_tokens=300,
            stop=["lo wo", "zzz"],
            stream=stream,
            extra_body={"include_stop_str_in_output": include},
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == expected
        assert choices[-1].finish_reason == "stop"
        assert choices[-1].model_extra == {"stop_reason": "lo wo"}
    assert served.generator.running == 0


def test_a_stop_string_frees_the_sequence(serve: Serve) -> None:
    served = world(serve, "a b c d e f g h i j k l m n o p")
    served.generator.delay_s = 0.01
    answer = served.client().completions.create(model=MODEL, prompt="a", max_tokens=400, stop="d", seed=1)
    assert answer.choices[0].text == "a b c "
    assert (served.generator.running, served.generator.cancelled) == (0, 1)
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 16


def test_min_tokens_delays_stop_strings(serve: Serve) -> None:
    served = world(serve, "xxxxxxxx")
    served.generator.outputs = [served.ids("x") * 8]
    answer = served.client().completions.create(
        model=MODEL, prompt="a", max_tokens=8, stop="x", extra_body={"min_tokens": 3}
    )
    assert answer.choices[0].text == "xxx"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_stop_tokens(serve: Serve) -> None:
    served = world(serve, "abc")
    [*_, last] = served.ids("abc")
    for include in (False, True):
        body = {"stop_token_ids": [last], "include_stop_str_in_output": include, "return_token_ids": True}
        answer = served.client().completions.create(model=MODEL, prompt="a", max_tokens=300, extra_body=body)
        choice = answer.choices[0]
        assert choice.text == ("abc" if include else served.codec.decode(served.ids("abc")[:-1]))
        assert choice.model_extra is not None
        assert choice.model_extra["stop_reason"] == last
        assert choice.model_extra["token_ids"] == served.ids("abc")
        assert choice.model_extra["prompt_token_ids"] == served.ids("a")


def test_prompt_forms_n_and_seeds(serve: Serve) -> None:
    served = serve(FakeGenerator())  # replays the prompt
    client = served.client()
    texts = ["hello", "world 中"]
    ids = [served.ids(text) for text in texts]
    assert client.completions.create(model=MODEL, prompt=ids[0], max_tokens=len(ids[0])).choices[0].text == "hello"
    served.generator.submits.clear()
    for prompt in (texts, ids):
        answer = client.completions.create(model=MODEL, prompt=prompt, n=2, seed=2**64 - 1, max_tokens=300)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text[:5] for choice in answer.choices] == ["hello", "hello", "world", "world"]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids[0]) + len(ids[1]), 1200)
    second = choice_seed(2**64 - 1, 1)
    assert [submit.sampling.seed for submit in served.generator.submits] == [2**64 - 1, second] * 4


def test_choices_of_neighbouring_seeds_draw_apart(serve: Serve) -> None:
    served = serve(FakeGenerator())
    for seed in (-1, 0, 1, 2, 2**32):
        served.client().completions.create(model=MODEL, prompt="a", n=8, seed=seed, max_tokens=1)
    seeds = [submit.sampling.seed for submit in served.generator.submits]
    assert seeds[::8] == [2**64 - 1, 0, 1, 2, 2**32], "a request for one choice, or its first, draws from its own seed"
    assert len(set(seeds)) == 40
    assert seeds[9] == choice_seed(0, 1) == 8829055359606111300, "the same in every process"


def test_n_streams_side_by_side(serve: Serve) -> None:
    served = serve(FakeGenerator(delay_s=0.001))
    served.generator.outputs = [served.ids("first one"), served.ids("second 😀")]
    texts = {0: "", 1: ""}
    for chunk in served.client().completions.create(model=MODEL, prompt="x", n=2, max_tokens=12, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    expected = [served.codec.decode((served.ids(text) * 12)[:12]) for text in ("first one", "second 😀")]
    assert list(texts.values()) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_as_the_client_parses_them(serve: Serve, stream: bool) -> None:
    served = world(serve, "to be")
    answer: Any = served.client().completions.create(model=MODEL, prompt="a", max_tokens=300, logprobs=2, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    tokens = [token for part in parts if part for token in part.tokens or []]
    assert tokens == [*(served.codec.decode([i]) for i in served.ids("to be")), "</s>"]
    assert [value for part in parts if part for value in part.token_logprobs or []] == [-0.5] * len(tokens)
    offsets = [offset for part in parts if part for offset in part.text_offset or []]
    assert offsets == ["to be</s>".index("".join(tokens[i:])) for i in range(len(tokens))]
    tops = [top for part in parts if part for top in part.top_logprobs or []]
    assert all(len(top) == 2 and top[token] == -0.5 for top, token in zip(tops, tokens, strict=True))


def test_half_characters_among_logprobs_are_spelled_out(serve: Serve, codec: TextCodec) -> None:
    served = world(serve, "😁")
    answer = served.client().completions.create(model=MODEL, prompt="a", max_tokens=300, logprobs=0)
    assert answer.choices[0].text == "😁"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.tokens[0].startswith("bytes:\\xf0")


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_point_into_the_text_that_the_client_gets(serve: Serve, stream: bool) -> None:
    tokenizer = train_byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    served = serve(FakeGenerator(eos_token_ids=frozenset({1})), codec=TextCodec(tokenizer))
    ids: Any = map(tokenizer.token_to_id, ("Ã", "©", "a"))
    served.generator.outputs = [[*ids, 1]]  # é is two tokens
    for prompt, num_added in (("hello", 1), (served.ids("hello"), 0)):
        answer: Any = served.client().completions.create(
            model=MODEL, prompt=prompt, max_tokens=9, echo=True, logprobs=0, stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == "helloéa"
        offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
        assert offsets[: num_added + 1] == [0] * num_added + [0]
        assert offsets[-4:] == [5, 5, 6, 7]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(serve: Serve, stream: bool) -> None:
    served = world(serve, " world")
    for prompt in ("hello", served.ids("hello")):
        answer: Any = served.client().completions.create(
            model=MODEL, prompt=prompt, max_tokens=300, echo=True, logprobs=1, stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == "hello world"
        values = [value for choice in choices if choice.logprobs for value in choice.logprobs.token_logprobs]
        assert values[0] is None
        assert len(values) == len(served.ids("hello")) + len(served.ids(" world")) + 1


def test_echo_without_generation(serve: Serve) -> None:
    served = world(serve)
    client = served.client()
    answer = client.completions.create(model=MODEL, prompt=["ab", "cd"], max_tokens=0, echo=True, n=2)
    assert [choice.text for choice in answer.choices] == ["ab", "ab", "cd", "cd"]
    assert answer.choices[0].finish_reason == "length"
    assert served.generator.submits == []
    scored = client.completions.create(model=MODEL, prompt="hello", max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == "hello"
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == [None] + [-0.5] * (len(served.ids("hello")) - 1)
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_sampling_reaches_the_node(serve: Serve) -> None:
    served = world(serve)
    served.client().completions.create(
        model=MODEL,
        prompt="a",
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"5": -100},
        seed=-1,
        extra_body={
            "top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5, "min_tokens": 2, "ignore_eos": True, "user": "me",
        },
    )  # fmt: skip
    sampling = served.generator.submits[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 7, 0.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.5)
    assert dict(sampling.logit_bias) == {5: -100}
    assert (sampling.seed, sampling.min_tokens, sampling.ignore_eos) == (2**64 - 1, 2, True)
    assert not sampling.HasField("logprobs")


def test_default_limits(serve: Serve) -> None:
    served = serve(FakeGenerator())
    served.client().completions.create(model=MODEL, prompt=[5] * 10)
    served.client().completions.create(model=MODEL, prompt=[5] * 510)
    assert [submit.sampling.max_tokens for submit in served.generator.submits] == [16, 2]


def test_a_model_without_tokenizer_speaks_ids(serve: Serve) -> None:
    served = serve(FakeGenerator(), codec=TextCodec(None))
    answer = served.client().completions.create(
        model=MODEL, prompt=[5, 6], max_tokens=2, echo=True, logprobs=1, extra_body={"return_token_ids": True}
    )
    assert answer.choices[0].text == ""
    assert answer.choices[0].model_extra is not None
    assert answer.choices[0].model_extra["token_ids"] == [5, 6]


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"logprobs": 1}, {"prompt": ["ab", "cd"]}])
def test_missing_experts_are_named_in_the_answer(serve: Serve, options: dict[str, object]) -> None:
    served = world(serve)
    served.generator.missing_experts = {2: [5, 0], 4: [0, 3]}
    answer = served.client().completions.create(**{"model": MODEL, "prompt": "a", "max_tokens": 9, **options})
    assert answer.model_extra == {"manta": {"missing_experts": [0, 3, 5]}}


def test_missing_experts_are_named_in_the_chunk_that_ends_a_choice(serve: Serve) -> None:
    served = world(serve)
    served.generator.missing_experts = {2: [5, 0], 4: [0, 3]}
    served.generator.delay_s = 0.002
    chunks = list(
        served.client().completions.create(
            model=MODEL, prompt="a", max_tokens=9, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        ends = any(choice.finish_reason for choice in chunk.choices)
        assert chunk.model_extra == ({"manta": {"missing_experts": [0, 3, 5]}} if ends else {})
    assert sum(bool(chunk.model_extra) for chunk in chunks) == 2


@pytest.mark.parametrize("options", [{}, {"continuous_usage_stats": True}])
def test_missing_experts_come_with_the_end_of_a_stream(serve: Serve, options: dict[str, object]) -> None:
    served = world(serve)
    served.generator.missing_experts = {1: [1]}
    served.generator.tokens_per_message = 100
    text, chunk = served.client().completions.create(
        model=MODEL, prompt="a", max_tokens=9, stream=True, extra_body={"stream_options": options}
    )
    assert text.model_extra == {}
    assert chunk.model_extra == {"manta": {"missing_experts": [1]}}
    assert (chunk.usage is not None) == bool(options)


def test_normally_no_expert_is_missing(serve: Serve) -> None:
    served = world(serve)
    create = served.client().completions.create
    assert create(model=MODEL, prompt="a", max_tokens=9).model_extra == {}
    chunks = list(create(model=MODEL, prompt="a", max_tokens=9, stream=True))
    assert all(chunk.model_extra == {} for chunk in chunks)


def test_a_failed_request_names_its_error_and_nothing_else(serve: Serve) -> None:
    served = world(serve)
    served.generator.missing_experts = {1: [1]}
    served.generator.failures = {3: GenerationError("expert_unavailable", "no expert came back")}
    response = httpx.post(f"{served.url}/v1/completions", json={"prompt": "a", "max_tokens": 9})
    assert (response.status_code, list(response.json())) == (503, ["error"])
