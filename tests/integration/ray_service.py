"""What the Ray tests share: services on the session's Ray, clients, waiting with a time-out, and what runs where."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
from openai import OpenAI
from ray import serve

from cluster.lifecycle import serve as start_service
from cluster.lifecycle import status
from cluster.names import NAMESPACE, groups_prefix
from cluster.spec import spec_from_dict

MODEL = "mixtral-random"
REQUEST_TIMEOUT_S = 90.0
SHARE = 0.05  # CPUs that each part sets aside: several services share a small Ray


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    check: Callable[[], object], limit_s: float, what: str, state: Callable[[], object] = lambda: ""
) -> None:
    """Waits until `check` says something true; if it does not in time, fails and shows `state`."""
    deadline_s = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}\n{state()}"
        time.sleep(0.05)


def spec_of(directory: Path, port: int, name: str, **sections: dict[str, Any]) -> Any:
    """A service of one replica of everything; `sections` change it."""
    data: dict[str, Any] = {
        "name": name,
        "model": {"path": str(directory), "name": MODEL},
        "api": {"port": port, "route_prefix": "/" if name == "alpha" else f"/{name}"},
        "attention": {"num_cpus": SHARE},
        "experts": {"num_cpus": SHARE, "per_actor": 2, "slices": 1},
        "limits": {"recovery_timeout_s": 60, "load_timeout_s": 120, "orphan_timeout_s": 60, "drain_timeout_s": 5},
    }
    for section, fields in sections.items():
        data[section] = {**data.get(section, {}), **fields}
    return spec_from_dict(data)


@dataclass
class RayService:
    """A service that runs on the session's Ray."""

    name: str
    url: str
    progress: list[Any] = field(default_factory=list)

    def client(self, **options: Any) -> OpenAI:
        http_client = httpx.Client(trust_env=False, timeout=REQUEST_TIMEOUT_S)
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=http_client, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, trust_env=False)

    def status(self) -> dict[str, Any]:
        return status(self.name, "auto")

    def show(self) -> str:
        """The whole state, for failures."""
        return json.dumps(self.status(), indent=1)

    def replicas(self, shard: int) -> list[dict[str, Any]]:
        """The expert replicas of one shard that serve."""
        found = next(entry for entry in self.status()["experts"] if entry["shard"] == shard)
        return [replica for replica in found["replicas"] if replica["state"] == "serving"]

    def pids(self, part: str) -> set[int]:
        """The processes of `routers`, `attention_nodes` or `gateways`."""
        return {member["pid"] for member in self.status()[part]}

    def running(self) -> int:
        """Sequences that the nodes hold, as they last reported (up to a second ago)."""
        return sum(node["running"] + node["waiting"] for node in self.status()["attention_nodes"])


@contextmanager
def running_service(directory: Path, port: int, name: str, **sections: dict[str, Any]) -> Iterator[RayService]:
    """A service on the Ray that this process has joined; stopped at the end."""
    progress: list[Any] = []
    with start_service(spec_of(directory, port, name, **sections), "auto", progress.append) as running:
        yield RayService(name, running.url, progress)


@dataclass(frozen=True)
class Answer:
    """What one request got."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


def complete(client: OpenAI, prompt: Sequence[int], num_tokens: int, **more: Any) -> Answer:
    """One greedy completion, not streamed."""
    answer = client.completions.create(**_request(prompt, num_tokens, more))
    choice: Any = answer.choices[0]
    return Answer(choice.token_ids, choice.logprobs.token_logprobs, choice.text, choice.finish_reason)


def complete_streaming(
    client: OpenAI,
    prompt: Sequence[int],
    num_tokens: int,
    on_token: Callable[[int], None] = lambda number: None,
    **more: Any,
) -> Answer:
    """The same, streamed; `on_token` is called with the number of tokens so far."""
    token_ids: list[int] = []
    logprobs: list[float] = []
    text, finish_reason = "", ""
    for chunk in client.completions.create(**_request(prompt, num_tokens, more), stream=True):
        choice: Any = chunk.choices[0]
        token_ids += choice.token_ids or []
        logprobs += choice.logprobs.token_logprobs if choice.logprobs else []
        text += choice.text
        finish_reason = choice.finish_reason or finish_reason
        on_token(len(token_ids))
    return Answer(token_ids, logprobs, text, finish_reason)


def _request(prompt: Sequence[int], num_tokens: int, more: dict[str, Any]) -> dict[str, Any]:
    extra = {"return_token_ids": True, "ignore_eos": True, **more.pop("extra_body", {})}
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "logprobs": 0,
        "extra_body": extra,
        **more,
    }


def kill(pid: int) -> None:
    """Ends one process at once, as a crash would."""
    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def named_actors(service: str) -> list[str]:
    """The detached actors of one service."""
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in found if one["namespace"] == NAMESPACE and one["name"].startswith(f"{service}/")]


def placement_groups(service: str) -> list[str]:
    """The states of one service's placement groups that hold something."""
    table: dict[str, Any] = ray.util.placement_group_table()
    prefix = groups_prefix(service)
    return [one["state"] for one in table.values() if one["name"].startswith(prefix) and one["state"] != "REMOVED"]


def leftovers(service: str) -> dict[str, Any]:
    """Everything of one service that is on the cluster; all empty if there is nothing."""
    apps = [app for app in serve.status().applications if app == service]
    return {"actors": named_actors(service), "groups": placement_groups(service), "apps": apps}


def nothing_of(service: str) -> bool:
    """Whether nothing of a service is left."""
    return not any(leftovers(service).values())
