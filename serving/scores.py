"""Which log-probabilities a request asks for."""

from dataclasses import dataclass

from serving.errors import invalid
from serving.schemas import ChatBody, CompletionBody
from serving.settings import RequestLimits
from serving.unsupported import check_limit


@dataclass(frozen=True)
class Scores:
    """Alternatives to report beside each token; None: the tokens are not scored.

    Args:
        outputs: For each output token.
        prompts: For each token of the prompt but the first.
        prompts_told: How often those are told: as `prompt_logprobs`, and with the text that is echoed.
        listed: The alternatives of output tokens, instead of the best ones.
        as_ids: Whether tokens are named by their ids.
    """

    outputs: int | None = None
    prompts: int | None = None
    prompts_told: int = 0
    listed: tuple[int, ...] = ()
    as_ids: bool = False


def completion_scores(body: CompletionBody, limits: RequestLimits) -> Scores:
    """Raises ApiError (400) for more than the limits allow."""
    check_limit("logprobs", body.logprobs or 0, limits.max_logprobs)
    echoed = body.logprobs if body.echo else None
    return _scores(body, body.logprobs, echoed, limits)


def chat_scores(body: ChatBody, limits: RequestLimits) -> Scores:
    """Raises ApiError (400) for more than the limits allow."""
    check_limit("top_logprobs", body.top_logprobs or 0, limits.max_logprobs)
    return _scores(body, (body.top_logprobs or 0) if body.logprobs else None, None, limits)


def _scores(body: CompletionBody | ChatBody, outputs: int | None, echoed: int | None, limits: RequestLimits) -> Scores:
    prompts = echoed if body.prompt_logprobs is None else body.prompt_logprobs
    check_limit("prompt_logprobs", prompts or 0, limits.max_logprobs)
    listed = body.logprob_token_ids or []
    check_limit("logprob_token_ids", len(listed), limits.max_logprobs)
    if listed and outputs is None:
        raise invalid("logprob_token_ids: it needs logprobs to be set.", "logprob_token_ids")
    told = (echoed is not None) + (body.prompt_logprobs is not None)
    return Scores(outputs, prompts, told, tuple(listed), bool(body.return_tokens_as_token_ids))
