"""The two generating endpoints: body in, checks, job, answer."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from protos.generation_pb2 import Sampling, Submit
from serving.bad_words import encode_bad_words
from serving.bodies import Bodies, BodyT
from serving.choice import TextRules
from serving.costs import most_output_tokens
from serving.errors import invalid, unknown_model
from serving.generator import Generator
from serving.metrics import GatewayMetrics
from serving.prompts import Prompt, encode_chat, encode_prompts, split_prompts, with_texts
from serving.rendering import (
    CHAT,
    COMPLETION,
    Answer,
    RenderLogprobs,
    Shape,
    chat_logprobs,
    legacy_logprobs,
    prompt_logprobs,
)
from serving.responses import Delivery, GenerationResponse
from serving.run import Job, Run
from serving.sampling import DEFAULT_COMPLETION_TOKENS, Submits, build_sampling, resolve_max_tokens
from serving.schemas import Body, ChatBody, CompletionBody, GenerationBody
from serving.scores import Scores, chat_scores, completion_scores
from serving.settings import GatewaySettings
from serving.stopping import StopTable
from serving.tokenizer import TextCodec
from serving.truncation import truncation_of
from serving.unsupported import check_best_of, check_limit, check_lists, check_stops, check_task, check_unsupported


@dataclass(frozen=True)
class Gateway:
    """What every endpoint needs."""

    settings: GatewaySettings
    codec: TextCodec
    generator: Generator
    metrics: GatewayMetrics
    bodies: Bodies

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions. Raises ApiError for whatever is wrong with the request."""
        arrival_s = time.monotonic()
        body = await self.read(request, CompletionBody)
        self._check(body)
        settings = self.settings
        scores = completion_scores(body, settings.limits)
        raw_prompts = split_prompts(body.prompt, settings.limits)
        self._check_counts(len(raw_prompts), body.n)
        truncation = truncation_of(body, settings.max_context)
        special, split = body.add_special_tokens is not False, bool(body.split_special_tokens)
        prompts = await encode_prompts(raw_prompts, self.codec, settings, special, truncation, split)
        echo = bool(body.echo)
        if echo:
            prompts = await with_texts(prompts, self.codec, body.skip_special_tokens is not False)
        submits = await self._submits(body, prompts, DEFAULT_COMPLETION_TOKENS, scores, COMPLETION, echo)
        job = self._job(body, prompts, submits, scores, arrival_s)
        logprobs = None if scores.outputs is None else await legacy_logprobs(job, self.codec, echo, scores.as_ids)
        return self._respond(body, self._answer(COMPLETION, body, job, logprobs, echo))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions. Raises ApiError for whatever is wrong with the request."""
        arrival_s = time.monotonic()
        body = await self.read(request, ChatBody)
        self._check(body)
        scores = chat_scores(body, self.settings.limits)
        self._check_counts(1, body.n)
        truncation = truncation_of(body, self.settings.max_context)
        prompts = [await encode_chat(body, self.codec, self.settings, truncation)]
        submits = await self._submits(body, prompts, None, scores, CHAT)
        job = self._job(body, prompts, submits, scores, arrival_s)
        logprobs = None if scores.outputs is None else chat_logprobs(self.codec.token_bytes, scores.as_ids)
        return self._respond(body, self._answer(CHAT, body, job, logprobs))

    async def read(self, request: Request, kind: type[BodyT]) -> BodyT:
        """The validated body, for the model that is served. Raises ApiError (400, 404, 408, 413, 415, 429)."""
        body = await self.bodies.read(request, kind)
        if isinstance(body, Body) and body.model not in (None, self.settings.model_name):
            raise unknown_model(body.model or "", self.settings.model_name)
        return body

    def _check(self, body: GenerationBody) -> None:
        check_unsupported(body)
        check_best_of(body.best_of, body.n)
        check_task(body.task, self.settings.tasks)
        check_stops(body.stop, self.settings.limits)
        check_lists(body, self.settings.limits)

    def _check_counts(self, num_prompts: int, n: int) -> None:
        limits = self.settings.limits
        check_limit("n", n, limits.max_n)
        check_limit("prompt", num_prompts, limits.max_prompts)
        if num_prompts * n > limits.max_sequences:
            raise invalid(
                f"{num_prompts} prompts times n = {n} are {num_prompts * n} sequences; "
                f"at most {limits.max_sequences} are allowed in one request.",
                "n",
            )

    async def _submits(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        default_max_tokens: int | None,
        scores: Scores,
        shape: Shape,
        echo: bool = False,
    ) -> Sequence[Submit]:
        """Every prompt is checked before the first is submitted. Empty when there is nothing to compute."""
        settings = self.settings
        repeats = echo or bool(body.return_token_ids) or scores.prompts is not None
        num_told = body.n if shape.prompt_in_choice else 1
        bad_words = await encode_bad_words(body.bad_words or (), self.codec, settings)
        most = most_output_tokens(
            prompts,
            body.n,
            settings,
            num_copies=num_told if repeats else 0,
            echo=echo,
            prompts_told=scores.prompts_told,
            scores_outputs=scores.outputs is not None,
            stream=bool(body.stream),
        )
        samplings: list[Sampling] = []
        for prompt in prompts:
            num_prompt = len(prompt.token_ids)
            max_tokens = resolve_max_tokens(num_prompt, body.output_limit, default_max_tokens, most, settings)
            samplings.append(build_sampling(body, max_tokens, settings, scores, bad_words))
        if body.output_limit == 0 and scores.prompts is None:
            return ()
        task = check_task(body.task, settings.tasks)
        return Submits(prompts, samplings, body.n, body.seed, task, body.priority or 0, num_scoring=num_told)

    def _job(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        submits: Sequence[Submit],
        scores: Scores,
        arrival_s: float,
    ) -> Job:
        rules = TextRules(
            stops=StopTable(body.stop) if body.stop else None,
            include_stop=bool(body.include_stop_str_in_output),
            min_tokens=body.min_tokens or 0,
            eos_token_ids=frozenset(self.settings.eos_token_ids),
            keeps_ids=bool(body.return_token_ids) or scores.outputs is not None,
        )
        return Job(prompts, body.n, submits, rules, arrival_s, body.skip_special_tokens is not False)

    def _answer(
        self, shape: Shape, body: GenerationBody, job: Job, logprobs: RenderLogprobs | None, echo: bool = False
    ) -> Answer:
        options = body.stream_options
        return Answer(
            shape=shape,
            request_id=shape.id_prefix + (body.request_id or secrets.token_hex(16)),
            created=int(time.time()),
            model=self.settings.model_name,
            job=job,
            logprobs=logprobs,
            echo=echo,
            prompt_logprobs=None if body.prompt_logprobs is None else prompt_logprobs(self.codec.token_bytes),
            return_token_ids=bool(body.return_token_ids),
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.continuous_usage_stats),
        )

    def _respond(self, body: GenerationBody, answer: Answer) -> Response:
        run = Run(answer.job, self.codec, self.generator, self.metrics)
        delivery = Delivery(run, answer, self.settings, self.metrics)
        return GenerationResponse(delivery.stream if body.stream else delivery.whole)
