"""From a service file and a checkpoint to what every part needs: each `auto` decided. Makes no Ray call."""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.api_keys import keys_and_digest
from cluster.fingerprint import fingerprint
from cluster.frame_checks import frame_problems
from cluster.room import Room
from cluster.spec import Problem, ServiceSpec, SpecError, shards
from model.config import MixtralConfig, read_config
from model.rope_scaling import beyond_context
from model.routing import FIELD, Routing
from serving.end_tokens import with_end
from transport.tls import TlsFiles

SMALL_CPUS = 0.1  # gateways, routers: they wait more than they compute


@dataclass(frozen=True)
class Service:
    """A spec and its model, resolved.

    Args:
        config: The checkpoint's, with the spec's window.
        dtype: `float32` or `bfloat16`.
        max_context: Positions of a sequence, prompt and output together.
        room: Where it was started; what was decided by it at the start stays decided.
        loopback: Whether every part is on this host, so that none needs to listen for others.
        keys_digest: Tells the API keys apart from others (`cluster.api_keys`); empty: there are none.
    """

    spec: ServiceSpec
    config: MixtralConfig
    dtype: str
    max_context: int
    room: Room
    loopback: bool
    keys_digest: str = ""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def directory(self) -> Path:
        return self.spec.model.directory

    @property
    def version(self) -> str:
        """Names this very spec and its API keys: the same files give the same version."""
        return fingerprint((self.spec, self.keys_digest))

    @property
    def num_cpus(self) -> int:
        """CPUs that expert actors may use, one of each shard, for `auto` shards."""
        return self.room.for_experts(self.spec.experts.placement)

    @property
    def tls(self) -> TlsFiles | None:
        """The certificates for connections between hosts; None: there are none, or no such connections."""
        tls = self.spec.tls
        if self.loopback or tls.cert_file is None or tls.key_file is None or tls.ca_file is None:
            return None
        return TlsFiles(Path(tls.cert_file), Path(tls.key_file), Path(tls.ca_file))

    @property
    def attention_device(self) -> str:
        return "cuda" if self.spec.attention.num_gpus > 0 else "cpu"


def resolve(spec: ServiceSpec, room: Room, loopback: bool = False) -> Service:
    """Reads the checkpoint's config.json and decides what the spec leaves open.

    Args:
        room: Where the service will run, or that of a service which runs.
        loopback: Whether every part is on this host.

    Raises:
        ConfigError: The checkpoint is missing or not a Mixtral.
        TokenizerError: Only its tokenizer can say what ends a text, and cannot be used.
        SpecError: `experts` does not fit the checkpoint's experts, `router.routing` is not the checkpoint's, a setting
            asks for messages that are too large, or `api.keys_file` cannot be used.
        ValueError: `model.max_context` is more than the model has.
    """
    config = with_end(read_config(spec.model.directory), spec.model.directory)
    _check_routing(spec, config.routing)
    _check_slices(spec, config.ffn_size)
    model = spec.model
    max_context = config.max_context if model.max_context == "auto" else model.max_context
    if max_context > config.max_context:
        raise ValueError(
            f"model.max_context: {max_context} was given; the checkpoint allows {config.max_context} at most"
            f"{beyond_context(config.rope_scaling)}"
        )
    window = config.window if model.window == "auto" else model.window
    service = Service(
        spec=spec,
        config=replace(config, window=window),
        dtype=config.dtype if model.dtype == "auto" else model.dtype,
        max_context=max_context,
        room=room if room.replicas is not None else _room_of(spec, room),
        loopback=loopback,
        keys_digest=keys_and_digest(spec)[1],
    )
    plans = shards(spec, config.num_experts, service.num_cpus)
    problems = list(frame_problems(spec, config, service.dtype, max_context, plans))
    if problems:
        raise SpecError(problems)
    return service


def _room_of(spec: ServiceSpec, room: Room) -> Room:
    """Returns the room together with what a service's experts start with."""
    experts = spec.experts
    num_cpus = room.share if experts.num_cpus == "auto" else experts.num_cpus
    return replace(room, replicas=experts.replicas.min, num_cpus=num_cpus)


def _check_slices(spec: ServiceSpec, ffn_size: int) -> None:
    given = spec.experts.slices
    if given != "auto" and given > ffn_size:
        text = f"{given} was given; allowed: auto or 1 to {ffn_size}, the hidden columns of this checkpoint's experts."
        raise SpecError([Problem("experts.slices", text)])


def _check_routing(spec: ServiceSpec, routing: Routing) -> None:
    given = spec.router.routing
    if given not in ("auto", routing.level):
        text = (
            f"{given} was given; the weights in {spec.model.directory} were trained to be routed by {routing.level}. "
            f"Use auto or {routing.level}, or serve a checkpoint whose config.json says level {given} in {FIELD}."
        )
        raise SpecError([Problem("router.routing", text)])
