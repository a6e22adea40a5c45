"""The echo actors of `benchmarks.hop`."""

import logging
from typing import Any

import ray
import torch

from benchmarks.hop.echo import echo_requests
from cluster.ray_token import demand_token
from transport.ray import Bytes, serve_ray_call


@ray.remote(num_cpus=1)
class EchoActor:
    """Answers calls with the rows it gets."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def ready(self) -> bool:
        return True

    def serve_rows(self, header: bytes, body: Bytes) -> tuple[bytes, Bytes]:
        return serve_ray_call(echo_requests, header, body)


def start_actors(num_actors: int) -> list[Any]:
    """Starts a local Ray with as many echo actors, whatever the machine has; `ray.shutdown` ends it."""
    demand_token()
    ray.init(
        address="local",
        num_cpus=num_actors,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 << 20,
    )
    actors = [EchoActor.remote() for _ in range(num_actors)]  # pyright: ignore[reportFunctionMemberAccess]
    ray.get([actor.ready.remote() for actor in actors])  # pyright: ignore[reportFunctionMemberAccess]
    return actors
