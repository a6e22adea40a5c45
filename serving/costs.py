"""What an answer may cost in memory: the tokens that it holds at a time, before any of it is sent."""

from collections.abc import Sequence

from serving.errors import ApiError, invalid
from serving.prompts import Prompt
from serving.settings import GatewaySettings

CHARS_PER_TOKEN = 16  # of text that is repeated: more only where tokens stand for long runs, as Llama 3's of 128 blanks


def most_output_tokens(
    prompts: Sequence[Prompt],
    n: int,
    settings: GatewaySettings,
    *,
    num_copies: int,
    echo: bool,
    prompts_told: int,
    scores_outputs: bool,
    stream: bool,
) -> int:
    """The most tokens that each sequence may have.

    A stream is sent as it comes, but what is repeated or scored of prompts comes at once, each prompt `num_copies`
    times, with `echo` their texts, and the scores of each `prompts_told` times. Raises ApiError (400) when that
    alone is too much.
    """
    limits, num_sequences = settings.limits, len(prompts) * n
    num_repeated = num_copies * sum(len(prompt.token_ids) for prompt in prompts)
    if num_repeated > limits.max_output_tokens:
        raise invalid(
            f"n: each choice repeats its prompt (echo, return_token_ids), {num_repeated} tokens in all; at most "
            f"{limits.max_output_tokens} are allowed in one request (limits.request.max_output_tokens).",
            "n",
        )
    num_chars = num_copies * sum(len(prompt.text or "") for prompt in prompts) if echo else 0
    most_chars = CHARS_PER_TOKEN * limits.max_output_tokens
    if num_chars > most_chars:
        raise invalid(
            f"n: each choice repeats its prompt (echo), {num_chars} characters in all; at most {most_chars} are "
            f"allowed in one request ({CHARS_PER_TOKEN} for each of limits.request.max_output_tokens).",
            "n",
        )
    num_scored = num_repeated * prompts_told
    if num_scored > limits.max_scored_tokens:
        raise invalid(
            f"logprobs: {num_scored} tokens of prompts would be scored, those of a completion once for each choice, "
            f"and twice where both echo and prompt_logprobs ask for it; at most {limits.max_scored_tokens} are allowed "
            "in one request (limits.request.max_scored_tokens).",
            "logprobs",
        )
    if stream:
        return settings.max_context
    most = (limits.max_output_tokens - num_repeated) // num_sequences
    return min(most, (limits.max_scored_tokens - num_scored) // num_sequences) if scores_outputs else most


def too_many_held(asked: int | None, most: int) -> ApiError:
    """400: an answer that is not streamed would hold too much. `asked`: max_tokens, where the client said."""
    wish = "leaves open how many tokens" if asked is None else f"asks for {asked} tokens (max_tokens)"
    return invalid(
        f"max_tokens: the request {wish} each choice has; without stream, so many choices may have {most} each "
        "(limits.request.max_output_tokens, with logprobs max_scored_tokens). Set stream, or ask for less.",
        "max_tokens",
    )
