"""The service file as typed, frozen data: one class for each section, one line of documentation for each field."""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cluster.spec_fields import (
    AutoBool,
    ExpertId,
    FixedReplicaCount,
    Host,
    HostNames,
    Interval,
    Labels,
    Origins,
    Port,
    PortOrNull,
    Route,
    Share,
    Silence,
    UnreadBytes,
    Window,
)
from serving.settings import RequestLimits
from spec.fields import (
    AutoCount,
    Count,
    CountOrZero,
    Name,
    NumCpus,
    NumGpus,
    Seconds,
    Text,
    TextOrNull,
)
from spec.not_yet import NotYet
from spec.paths import FileName
from spec.replicas import ONE, REPLICAS, ReplicaCount, Replicas
from spec.rules import one_of
from spec.section import Section

DEMO = "demo"  # the model.path that means the bundled model
SUBJECT = "the service"  # what such a file describes, in errors


def name_of(directory: Path) -> str:
    """The name of a model's directory as it was given: of a link, the link's own.

    A snapshot in the hub's cache is called by a hash; its model's name is two folders above.

    >>> name_of(Path("/models/mixtral")), name_of(Path("/hub/models--mistralai--Mixtral-8x7B-v0.1/snapshots/985aa05"))
    ('mixtral', 'mistralai/Mixtral-8x7B-v0.1')
    """
    whole = Path(os.path.abspath(directory))  # not resolve(): what a link leads to is nobody's name for it
    folder, above = whole.parent, whole.parent.parent.name
    if folder.name == "snapshots" and above.startswith("models--"):
        return above.removeprefix("models--").replace("--", "/")
    return whole.name or "model"


class ModelSpec(Section):
    """The checkpoint to serve."""

    path: Annotated[Text, FileName(keep=(DEMO,))]
    """A Hugging Face directory, or `demo` for the bundled model. Relative paths start at the service file's folder."""
    name: TextOrNull = None
    """The name clients use; null: the directory's, or, of a snapshot in the hub's cache, the model's name there."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], one_of("auto", "float32", "bfloat16")] = "auto"
    """What weights and activations are held in; auto: the checkpoint's own, and float32 for float16."""
    window: Window = "auto"
    """How many positions attention sees and the rolling cache keeps; auto: from the checkpoint."""
    max_context: AutoCount = "auto"
    """The most positions (prompt and output) of one sequence; auto: from the checkpoint."""

    @property
    def directory(self) -> Path:
        """The checkpoint's directory; `demo` is resolved to the bundled one."""
        return Path(str(resources.files("manta") / "demo")) if self.path == DEMO else Path(self.path)

    @property
    def served_name(self) -> str:
        """The name clients use."""
        return self.name or name_of(self.directory)


class ApiSpec(Section):
    """The gateways: the HTTP API that clients talk to."""

    host: Host = "127.0.0.1"
    """The address to listen on. Anything but a loopback address needs `keys_file`."""
    port: Port = 8000
    """One host and port serve a whole Ray cluster: a second service needs another `route_prefix`."""
    route_prefix: Route = "/"
    """What every path of this service starts with."""
    grpc_port: Annotated[PortOrNull, NotYet("leave it out and use the HTTP API")] = None
    """The port of the public gRPC API."""
    keys_file: Annotated[TextOrNull, FileName()] = None
    """A file of API keys of 16 characters or more, one a line; # starts a comment. Null: no keys, loopback only."""
    cors_origins: Origins = ()
    """The web pages (by origin) whose scripts may use the API from a browser; `*`: all. Empty: none."""
    allowed_hosts: HostNames = ()
    """Without `keys_file`: names beside localhost and loopback addresses that requests may be for (their Host)."""
    replicas: FixedReplicaCount = ONE
    """Gateways."""


class AttentionSpec(Section):
    """The attention nodes: embedding, attention, rolling cache, scheduling, sampling."""

    replicas: ReplicaCount = ONE
    """Attention nodes."""
    num_gpus: NumGpus = 0
    """The share of a GPU that one node has, at most 1."""
    num_cpus: NumCpus = "auto"
    """CPUs that Ray sets aside for one node; auto: 1; a fraction if Manta starts Ray, or Ray has fewer than 4."""
    cache_tokens: AutoCount = "auto"
    """Rolling-cache capacity of one node, in positions."""
    prefill_chunk: AutoCount = "auto"
    """The most prompt positions that one step takes from one sequence; auto: the window."""
    max_batch_tokens: AutoCount = "auto"
    """The most rows of one step; auto: 2048 on GPUs, 512 on CPUs, where a larger step is no faster."""
    max_sequences: Count = 64
    """The most sequences that run at once on one node; the others queue."""
    max_queued: CountOrZero = 256
    """The most sequences that wait on one node; beyond it a request is answered 429."""
    accelerator_type: TextOrNull = None
    """The accelerator that nodes must run on, in Ray's words, such as H200."""
    labels: Labels = Field(default_factory=dict)
    """The Ray labels of the hosts that nodes may run on."""


class RouterSpec(Section):
    """The routers: gating, dispatch, combine."""

    replicas: ReplicaCount = ONE
    """Routers."""
    routing: Annotated[Literal["auto", "token", "sentence", "task"], one_of("auto", "token", "sentence", "task")] = (
        "auto"
    )
    """What one gating decision covers; auto: what the checkpoint was trained for, the only level that is allowed."""


class ShardOverride(Section):
    """Settings of one shard that differ from the others'. Null: as `experts` says."""

    replicas: Annotated[Replicas | None, REPLICAS] = None
    """Replicas of this shard."""
    num_gpus: NumGpus | None = None
    """The share of a GPU that one replica of this shard has, at most 1."""
    num_cpus: NumCpus | None = None
    """CPUs of one replica of this shard."""
    accelerator_type: TextOrNull = None
    """The accelerator this shard must run on."""
    labels: Labels | None = None
    """The Ray labels of the hosts this shard may run on, instead of those in `experts.labels`."""


Placement = Literal["spread", "pack", "strict_spread", "strict_pack"]


class ExpertsSpec(Section):
    """The expert actors: the feed-forward networks of every layer."""

    per_actor: AutoCount = "auto"
    """Experts in one actor (a shard); auto: 1 on GPUs, to fit the cores on CPUs."""
    slices: AutoCount = "auto"
    """Parts that each expert's hidden columns are cut in, one an actor; auto: 1 on GPUs, to fit the cores on CPUs."""
    replicas: ReplicaCount = ONE
    """Replicas of every shard."""
    overrides: dict[ExpertId, ShardOverride] = Field(default_factory=dict)
    """Expert id to settings of its shard: `{3: {replicas: 2}}`; two that disagree about one shard are an error."""
    num_gpus: NumGpus = 0
    """The share of a GPU that one replica has, at most 1."""
    num_cpus: NumCpus = "auto"
    """CPUs that Ray sets aside for one replica; auto: 1; a fraction as for attention nodes."""
    pin_cores: AutoBool = "auto"
    """Whether each replica is kept on one core, as it would be on one GPU; auto: when there are cores for it."""
    accelerator_type: TextOrNull = None
    """The accelerator that replicas must run on, in Ray's words, such as H200."""
    labels: Labels = Field(default_factory=dict)
    """The Ray labels of the hosts that replicas may run on."""
    placement: Annotated[Placement, one_of("spread", "pack", "strict_spread", "strict_pack")] = "spread"
    """How replicas are spread over hosts."""
    quantization: Annotated[Literal["none", "int8"], one_of("none", "int8"), NotYet("use none")] = "none"
    """What the experts' weights are compressed to."""
    on_missing: Annotated[Literal["wait", "degrade"], one_of("wait", "degrade")] = "wait"
    """While no replica of a shard lives: wait for one, or answer without its experts and name them in the response."""


class AutoscalingSpec(Section):
    """How replica counts follow the load, where `replicas` is a range."""

    interval_s: Interval = 5
    """Time between two decisions."""
    target_utilization: Share = 0.7
    """How busy replicas should be, at most 1: the share of time they compute, or of a node's `max_sequences` taken."""
    downscale_delay_s: Seconds = 60
    """How long the load must stay low before replicas leave."""


DEFAULTS = RequestLimits()


class RequestLimitsSpec(Section):
    """What one request may cost. What asks for more is answered 400, 408, 413 or 429 and told the limit."""

    max_body_bytes: Count = DEFAULTS.max_body_bytes
    """The size of a body. Nobody else is served while one is parsed: 1 MiB takes some 30 ms."""
    body_timeout_s: Seconds = DEFAULTS.body_timeout_s
    """How long a body may take to arrive."""
    max_bodies_bytes: Count = DEFAULTS.max_bodies_bytes
    """What one gateway holds of bodies before they are parsed, all together (two of the largest size always fit).
    Beyond it the largest is answered 429."""
    max_n: Count = DEFAULTS.max_n
    """`n`: the choices of one prompt."""
    max_prompts: Count = DEFAULTS.max_prompts
    """The prompts of one completion."""
    max_sequences: Count = DEFAULTS.max_sequences
    """Prompts times `n`."""
    max_messages: Count = DEFAULTS.max_messages
    """The messages of a chat, their parts counted too."""
    max_text_bytes: Count = DEFAULTS.max_text_bytes
    """The size of a text that is tokenized: of each prompt, or of what the chat template makes of the messages."""
    max_prompt_tokens: Count = DEFAULTS.max_prompt_tokens
    """The tokens of all prompts together."""
    max_stop_strings: CountOrZero = DEFAULTS.max_stop_strings
    """`stop`: how many strings."""
    max_stop_string_chars: Count = DEFAULTS.max_stop_string_chars
    """`stop`: the characters of one string."""
    max_stop_token_ids: CountOrZero = DEFAULTS.max_stop_token_ids
    """`stop_token_ids`: how many."""
    max_logit_bias: CountOrZero = DEFAULTS.max_logit_bias
    """`logit_bias`: for how many tokens."""
    max_allowed_token_ids: CountOrZero = DEFAULTS.max_allowed_token_ids
    """`allowed_token_ids`: how many."""
    max_bad_words: CountOrZero = DEFAULTS.max_bad_words
    """`bad_words`: how many."""
    max_logprobs: CountOrZero = DEFAULTS.max_logprobs
    """`logprobs`, `top_logprobs`, `prompt_logprobs`, `logprob_token_ids`: how many alternatives of each token."""
    max_scored_tokens: Count = DEFAULTS.max_scored_tokens
    """Tokens answered at once with log-probabilities: of prompts (`echo`, `prompt_logprobs`; twice if both ask), and
    of outputs that are not streamed."""
    max_output_tokens: Count = DEFAULTS.max_output_tokens
    """The tokens of all sequences of an answer that is not streamed; left open by the request, they are cut to it."""
    delivery_timeout_s: Seconds = DEFAULTS.delivery_timeout_s
    """How long a client may leave unread what is ready for it, for each MiB; then its request is given up."""
    max_unread_bytes: UnreadBytes = DEFAULTS.max_unread_bytes
    """How much may be ready for a client that does not read it; then its request is given up."""


class LimitsSpec(Section):
    """How long things may take, and what one request may cost."""

    request_timeout_s: Seconds = 600
    """One request, from its arrival to its last token."""
    drain_timeout_s: Seconds = 30
    """How long a part that leaves may finish what it has."""
    load_timeout_s: Seconds = 600
    """How long a part may take to load its weights."""
    recovery_timeout_s: Seconds = 30
    """How long a request waits for the only copy of a part to come back."""
    heartbeat_timeout_s: Silence = 3
    """How long a process may be silent before it is taken for hung and replaced."""
    answer_timeout_s: Silence = 60
    """How long an expert call, or a connection, may stay without answer or word of progress; then others are asked."""
    orphan_timeout_s: Silence = 120
    """How long expert actors stay with neither controller nor routers."""
    request: RequestLimitsSpec = RequestLimitsSpec()
    """What one request may cost."""


class TlsSpec(Section):
    """Certificates for connections between hosts. Without them, these are encrypted under the service's own key."""

    cert_file: Annotated[TextOrNull, FileName()] = None
    """A host's certificate (PEM), at the same path on every host; null: no TLS. Parts read it when they start."""
    key_file: Annotated[TextOrNull, FileName()] = None
    """Its private key, without a password."""
    ca_file: Annotated[TextOrNull, FileName()] = None
    """The certificate of the authority that the other hosts' certificates must be of."""


class ServiceSpec(Section):
    """One service. Every field but `model.path` has a default."""

    name: Name = "manta"
    """The service's name: one Ray cluster can run several."""
    model: ModelSpec
    api: ApiSpec = ApiSpec()
    attention: AttentionSpec = AttentionSpec()
    router: RouterSpec = RouterSpec()
    experts: ExpertsSpec = ExpertsSpec()
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    limits: LimitsSpec = LimitsSpec()
    tls: TlsSpec = TlsSpec()
