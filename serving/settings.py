"""How one gateway is set up; made from the service's YAML by whoever starts it."""

from dataclasses import dataclass, field

KIB = 1 << 10
MIB = 1 << 20
READ_AHEAD_BYTES = MIB  # what a server may hold of an answer that is sent in several pieces
LEAST_UNREAD_BYTES = 2 * READ_AHEAD_BYTES  # below, clients that do read would be given up


@dataclass(frozen=True)
class RequestLimits:
    """What a single request may cost; beyond it, a 400 (408, 413) that names the limit. And what bodies may together.

    The service file sets them under `limits.request`; their defaults are stated here alone. A request that keeps to the
    defaults holds up no other client for more than 100 ms and adds at most 64 MB to a gateway (docs/decisions/010).
    """

    max_body_bytes: int = MIB
    body_timeout_s: float = 60.0  # for the body to arrive
    max_bodies_bytes: int = 64 * MIB  # of all that one gateway has not parsed yet; beyond it 429 for the largest
    max_n: int = 128
    max_prompts: int = 256
    max_sequences: int = 512  # prompts times n
    max_messages: int = 2048  # messages of a chat and their parts, together
    max_text_bytes: int = 192 * KIB  # UTF-8, of one text that is to be tokenized, chat template applied
    max_prompt_tokens: int = 256 * KIB  # of all prompts
    max_stop_strings: int = 16
    max_stop_string_chars: int = 256
    max_stop_token_ids: int = 64
    max_logit_bias: int = 300  # OpenAI's
    max_allowed_token_ids: int = 1024
    max_bad_words: int = 128  # vLLM's
    max_logprobs: int = 20
    max_scored_tokens: int = 32 * KIB  # tokens whose log-probabilities are held at a time
    max_output_tokens: int = MIB  # of all sequences of an answer that is not streamed
    delivery_timeout_s: float = 60.0  # for the client to take what is ready
    max_unread_bytes: int = 16 * MIB  # ready, and not taken by the client

    @property
    def max_json_containers(self) -> int:
        """Lists and objects of one body: what the other limits need (messages, their parts, prompts), and some more."""
        return 4 * self.max_messages + self.max_prompts + 1024


@dataclass(frozen=True)
class GatewaySettings:
    """What the API promises about the one model it serves.

    `max_context` counts positions, prompt and output together. `vocab_size`, when given, refuses token ids
    beyond it. With `tasks`, each request names one of them. With some `api_keys`, all but /health need one as a bearer
    key; with none, requests for this machine are let in, and those whose Host is among `allowed_hosts`. Scripts of web
    pages of `cors_origins` may read answers (`*`: of all).
    """

    model_name: str
    max_context: int
    eos_token_ids: tuple[int, ...] = ()
    vocab_size: int | None = None
    tasks: tuple[str, ...] = ()
    request_timeout_s: float = 600.0
    retry_after_s: float = 1.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    created: int = 0  # Unix time, seconds
    limits: RequestLimits = RequestLimits()

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ValueError("model_name is empty: give the name that clients put into `model`")
        if self.max_context < 1:
            raise ValueError(f"max_context is {self.max_context}: it must be at least 1 position")
        if any(not key for key in self.api_keys):
            raise ValueError("api_keys holds an empty key: anyone could use it; remove it")
