"""Settings that ask for messages which no frame may carry: refused at the start, not when the first large step comes.

Pure. Bytes of protobuf fields are those of their longest encoding.
"""

from collections.abc import Iterator, Sequence

from cluster.spec_schema import LimitsSpec, RequestLimitsSpec, ServiceSpec
from cluster.spec_shards import ShardPlan
from model.config import MixtralConfig
from serving.bad_words import MAX_TOKENS, NUM_FORMS
from spec.errors import Problem
from transport.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
ID_BYTES = 5  # a number below 2^32
SCORE_BYTES = ID_BYTES + 4  # a token and its log-probability
ENTRY_BYTES = 64  # what a sequence's message has beside its ids and scores


def frame_problems(
    spec: ServiceSpec, config: MixtralConfig, dtype: str, max_context: int, plans: Sequence[ShardPlan]
) -> Iterator[Problem]:
    """Yields every setting that, at its largest, is over what a frame carries.

    Args:
        dtype: `float32` or `bfloat16`.
        max_context: Positions of a sequence, prompt and output together.
        plans: The service's shards.
    """
    yield from _rows_problems(spec, config, dtype, plans)
    yield from _sequences_problems(spec, config)
    yield from _context_problems(spec.limits, config, max_context)


def _rows_problems(
    spec: ServiceSpec, config: MixtralConfig, dtype: str, plans: Sequence[ShardPlan]
) -> Iterator[Problem]:
    """A step's rows go to a router, and copies of them to the experts, in one frame each."""
    attention = spec.attention
    given = attention.max_batch_tokens
    field, num_rows = (
        ("attention.max_sequences", attention.max_sequences)
        if given == "auto"
        else ("attention.max_batch_tokens", given)
    )
    row_bytes = config.hidden_size * ITEM_BYTES[dtype]
    largest_shard = max(len(plan.expert_ids) for plan in plans)
    copies = min(config.top_k, largest_shard)
    of_gates = config.routing.level == "sentence"
    per_row = max(copies, 2 if of_gates else 1)
    most = MAX_BODY_BYTES // (row_bytes * per_row)
    if num_rows > most:
        why = (
            "the row itself and its gate row"
            if of_gates and copies <= 2
            else f"{copies} copies, for an actor of {largest_shard} experts"
        )
        yield Problem(
            field,
            f"{num_rows} was given; allowed: {most} at most. A step may have so many rows, each of {row_bytes} bytes "
            f"and sent {per_row} times ({why}), and a message of the data plane carries {MAX_BODY_BYTES} bytes.",
        )


def _sequences_problems(spec: ServiceSpec, config: MixtralConfig) -> Iterator[Problem]:
    """What a step gives to one gateway is one frame's header."""
    num_scores = spec.limits.request.max_logprobs + 1
    each = ENTRY_BYTES + num_scores * SCORE_BYTES + config.num_experts * ID_BYTES
    most = MAX_HEADER_BYTES // 2 // each  # the other half: log-probabilities of prompts
    if spec.attention.max_sequences > most:
        yield Problem(
            "attention.max_sequences",
            f"{spec.attention.max_sequences} was given; allowed: {most} at most, as each may add {each} bytes to one "
            f"message of a step (with limits.request.max_logprobs {spec.limits.request.max_logprobs}).",
        )


def _context_problems(limits: LimitsSpec, config: MixtralConfig, max_context: int) -> Iterator[Problem]:
    """A sequence is submitted in one frame's header, prompt and output so far together."""
    of_id = max(1, -(-(config.vocab_size - 1).bit_length() // 7))  # varint
    request = limits.request
    others = _wishes_bytes(request)
    most = (MAX_HEADER_BYTES - others) // of_id
    if most < 1:
        yield Problem(
            "limits.request",
            f"max_logit_bias {request.max_logit_bias}, max_stop_token_ids {request.max_stop_token_ids}, "
            f"max_allowed_token_ids {request.max_allowed_token_ids}, max_bad_words {request.max_bad_words} and "
            f"max_logprobs {request.max_logprobs} alone may take {others} bytes of a message that carries "
            f"{MAX_HEADER_BYTES}; lower them.",
        )
    elif max_context > most:
        yield Problem(
            "model.max_context",
            f"{max_context} positions; allowed: {most} at most, which fit a message from a gateway to a node.",
        )


def _wishes_bytes(limits: RequestLimitsSpec) -> int:
    """What is submitted beside the ids of prompt and output."""
    num_ids = limits.max_stop_token_ids + limits.max_allowed_token_ids + limits.max_logprobs
    num_ids += limits.max_bad_words * NUM_FORMS * (1 + MAX_TOKENS)
    return limits.max_logit_bias * (ID_BYTES + SCORE_BYTES) + num_ids * ID_BYTES + 4096
