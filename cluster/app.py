"""The Serve application: gateways, attention nodes and routers of one service.

Building it makes no Ray call but one: a cluster that this process has joined is asked how many CPUs it has. `serve run`
builds before it joins one: what is left open then follows from the cores of this host.

serve run cluster.app:build model=PATH
RAY_AUTH_MODE=token serve deploy deploy/serve.yaml
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.serve import Application

import protos
from attention.deployment import AttentionNode, NodeDeploymentSettings
from cluster.api_keys import keys_and_digest
from cluster.fingerprint import fingerprint
from cluster.hosts import present_room
from cluster.membership import join_service
from cluster.resolve import SMALL_CPUS, Service, resolve
from cluster.serve_policy import autoscaling_config
from cluster.spec import AttentionSpec, Replicas, ServiceSpec, load_spec, spec_for_model, spec_from_dict
from manta_imports import shadows
from router.deployment import RouterDeploymentSettings, RouterReplica
from serving.deployment import Gateway, GatewayDeploymentSettings
from serving.settings import GatewaySettings, RequestLimits
from spec.loader import parse_yaml
from transport.strangers import open_allowed, refuse_open

# Serve notices a dead replica at its next check: its defaults (10 s, 30 s) are made for slower services.
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0
# How often a replica that leaves looks whether its requests have ended; Serve's default makes each stop last 2 s.
DRAIN_CHECK_S = 0.2
# Every stream is an ongoing request of its gateway; the nodes' own queues say when it is too much (429).
MAX_ONGOING_REQUESTS = 10_000


def build(args: dict[str, Any]) -> Application:
    """Serve's application builder.

    Args:
        args: `model` (a directory, or `demo`), or `file` (a service YAML), or the sections of one. Beside `model` or
            `file`, further keys are fields by their dotted names, such as `router.replicas`; their values may be
            text, as `serve run` gives them.

    Raises:
        SpecError: They do not describe a service.
        ModelError: The checkpoint cannot be served.
        ValueError: Replicas would import other packages of the same names than ours.
        OpenCluster: The cluster lets strangers in (`transport.strangers`). Where none has been joined yet, each part
            finds that out before it does anything.
    """
    if ray.is_initialized():
        refuse_open(ray.get_runtime_context().gcs_address)
        _check_path()
    made = build_service(resolve(_spec(args), present_room()), refuses_open=not open_allowed())
    if not ray.is_initialized():
        _leave_others_folder()
    return made


def _leave_others_folder() -> None:
    """Lets `serve run` join a cluster from a folder without others of our names: Ray puts it on the replicas' path.

    Nothing relative is left to be read: the service's paths are absolute by now.
    """
    if shadows([os.getcwd()]):
        os.chdir(os.path.dirname(protos.__file__))


def _check_path() -> None:
    """Raises ValueError if the replicas that Serve starts would not import our packages; `serve deploy` asks here."""
    for name, folder in shadows(sys.path).items():
        raise ValueError(
            f"{folder} has a {name} of its own, and comes before Manta's packages on the path of Serve's replicas: it "
            "is on PYTHONPATH, or `ray start` ran there. Start Ray elsewhere, or take it off PYTHONPATH"
        )


def _spec(args: dict[str, Any]) -> ServiceSpec:
    fields = {key: _value(key, value) for key, value in args.items() if key not in ("file", "model")}
    if "file" in args:
        model = args.get("model")
        return load_spec(Path(str(args["file"])), fields if model is None else {**fields, "model.path": model})
    if isinstance(args.get("model"), str):
        return spec_for_model(args["model"], fields)
    dotted = {key: value for key, value in fields.items() if "." in key}
    return spec_from_dict({key: value for key, value in args.items() if "." not in key}, dotted)


def _value(key: str, given: Any) -> Any:
    """Reads text as a service file has it."""
    return parse_yaml(given, key) if isinstance(given, str) else given


def build_service(
    service: Service, held: Mapping[str, int] = MappingProxyType({}), refuses_open: bool = False
) -> Application:
    """Returns the application of a resolved service.

    Args:
        held: How many replicas a deployment is to have for now, instead of what its range allows.
        refuses_open: As for `JoinService`.
    """

    def scaled(deployment: str, part: str, replicas: Replicas) -> dict[str, Any]:
        number = held.get(deployment)
        replicas = replicas if number is None else Replicas(min=number, max=number)
        return {"autoscaling_config": autoscaling_config(spec.name, part, replicas, spec.autoscaling)}

    spec, join = service.spec, join_service(service, refuses_open)
    gateway, digest = _gateway_settings(service)
    router, node = _router_settings(service), _node_settings(service)
    cpus, attention = service.room.share, spec.attention
    small = {"num_cpus": min(SMALL_CPUS, cpus), "num_gpus": 0}
    gateways = {"num_replicas": spec.api.replicas.num}
    routers = scaled("RouterReplica", "routers", spec.router.replicas)
    nodes = scaled("AttentionNode", "attention nodes", attention.replicas)
    return _options(Gateway, service, gateways, (gateway, digest), small).bind(
        gateway,
        join,
        _options(RouterReplica, service, routers, router, small).bind(router, join),
        _options(AttentionNode, service, nodes, node, _node_host(attention, cpus)).bind(node, join),
    )


def _node_host(attention: AttentionSpec, cpus: float) -> dict[str, Any]:
    """Returns what an attention node needs of its host, in Ray's words."""
    wanted: dict[str, Any] = {
        "num_cpus": cpus if attention.num_cpus == "auto" else attention.num_cpus,
        "num_gpus": attention.num_gpus,
    }
    if attention.accelerator_type is not None:
        wanted["accelerator_type"] = attention.accelerator_type
    if attention.labels:
        wanted["label_selector"] = dict(attention.labels)
    return wanted


def _options(
    deployment: Any, service: Service, replicas: dict[str, Any], settings: object, of_host: dict[str, Any]
) -> Any:
    drain_s = service.spec.limits.drain_timeout_s
    options = deployment.options(
        max_surge_percent=100,  # new replicas serve before old ones leave
        **replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=drain_s,
        graceful_shutdown_wait_loop_s=min(DRAIN_CHECK_S, drain_s),
        ray_actor_options=of_host,
    )
    # Serve replaces replicas of another version only; of itself, it would give each `serve.run` a random one.
    return options.options(version=fingerprint(settings), _internal=True)


def gateway_settings(service: Service) -> GatewayDeploymentSettings:
    """Returns what a gateway needs, the API keys as this host has them."""
    return _gateway_settings(service)[0]


def _gateway_settings(service: Service) -> tuple[GatewayDeploymentSettings, str]:
    """Returns what a gateway needs, and a digest of its API keys."""
    spec = service.spec
    keys, digest = keys_and_digest(spec)
    settings = GatewaySettings(
        model_name=spec.model.served_name,
        max_context=service.max_context,
        eos_token_ids=service.config.eos_token_ids,
        vocab_size=service.config.vocab_size,
        tasks=service.config.routing.tasks,
        request_timeout_s=spec.limits.request_timeout_s,
        api_keys=keys,
        cors_origins=spec.api.cors_origins,
        allowed_hosts=spec.api.allowed_hosts,
        limits=RequestLimits(**spec.limits.request.model_dump()),
    )
    limits = spec.limits
    made = GatewayDeploymentSettings(service.directory, settings, limits.recovery_timeout_s, limits.answer_timeout_s)
    return made, digest


def _router_settings(service: Service) -> RouterDeploymentSettings:
    spec = service.spec
    return RouterDeploymentSettings(
        directory=service.directory,
        config=service.config,
        dtype=service.dtype,
        recovery_timeout_s=spec.limits.recovery_timeout_s,
        answer_timeout_s=spec.limits.answer_timeout_s,
        degrade=spec.experts.on_missing == "degrade",
    )


def _node_settings(service: Service) -> NodeDeploymentSettings:
    attention, limits = service.spec.attention, service.spec.limits
    return NodeDeploymentSettings(
        directory=service.directory,
        config=service.config,
        dtype=service.dtype,
        device=service.attention_device,
        gpu_share=attention.num_gpus,
        max_context=service.max_context,
        cache_tokens=None if attention.cache_tokens == "auto" else attention.cache_tokens,
        prefill_chunk=None if attention.prefill_chunk == "auto" else attention.prefill_chunk,
        max_batch_tokens=None if attention.max_batch_tokens == "auto" else attention.max_batch_tokens,
        max_sequences=attention.max_sequences,
        max_queued=attention.max_queued,
        recovery_timeout_s=limits.recovery_timeout_s,
        answer_timeout_s=limits.answer_timeout_s,
        request_timeout_s=limits.request_timeout_s,
    )
