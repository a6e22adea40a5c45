"""A real Ray without authentication is refused by every command that would use it, unless that is allowed."""

import stat
from collections.abc import Iterator

import pytest
import ray
import yaml
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

from cluster.ray_token import token_file
from tests.integration.ray_head import START_S, Head, started_head
from tests.integration.ray_service import wait_until
from transport.strangers import ALLOW_VARIABLE, asks_for_token

pytestmark = pytest.mark.cluster

TRAINING = """
storage: runs
model: {config: {hidden_size: 8, ffn_size: 8, num_layers: 1, num_heads: 2, num_kv_heads: 1}, tokenizer: tokenizer}
data: {sources: [{path: corpus}]}
schedule: {steps: 1, batch: 1}
optimizer: {warmup_steps: 0}
"""
REFUSED = "runs without authentication: whoever reaches a port of its hosts"


def test_manta_s_own_ray_asks_for_a_token_that_nobody_else_can_read(ray_port: int) -> None:
    address = ray.get_runtime_context().gcs_address
    assert asks_for_token(address)
    assert asks_for_token(address, "another")
    assert not asks_for_token(address, AuthenticationTokenLoader.instance().get_raw_token())
    assert not token_file().exists() or stat.S_IMODE(token_file().stat().st_mode) & 0o077 == 0


@pytest.fixture(scope="module")
def open_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("open")
    (folder / "training.yaml").write_text(TRAINING)
    (folder / "service.yaml").write_text("model: {path: demo}\n")
    with started_head(folder, RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1") as head:
        yield head


@pytest.mark.full
@pytest.mark.parametrize(
    "command",
    [
        ("manta", "serve", "demo", "--address", "auto"),
        ("manta", "train", "training.yaml", "--address", "auto"),
        ("manta", "plan", "service.yaml"),
        ("manta", "status"),
        ("manta", "down"),
        ("python", "-m", "training", "training.yaml"),
    ],
    ids=lambda command: " ".join(command[-4:]),
)
def test_a_command_refuses_it(open_head: Head, command: tuple[str, ...]) -> None:
    assert open_head.start(*command).wait(60) == 2, open_head.said(command[0])
    assert REFUSED in open_head.said(command[0])
    assert not open_head.parts()


@pytest.mark.full
def test_it_can_be_allowed(open_head: Head) -> None:
    allowed = Head(open_head.folder, {**open_head.environment, ALLOW_VARIABLE: "1"}, open_head.mark, open_head.port)
    assert allowed.start("manta", "status").wait(60) == 2
    assert "services on this cluster: none" in allowed.said("manta")


@pytest.mark.full
def test_serve_run_and_deploy_refuse_it(open_head: Head) -> None:
    """Each part finds it out at its start; what was deployed says so."""
    open_head.start("serve", "run", "cluster.app:build", "model=demo").wait(
        START_S
    )  # its status is 0, whatever happens
    assert REFUSED in open_head.said("serve")
    application = {"name": "manta", "import_path": "cluster.app:build", "args": {"model": "demo"}}
    data = {"http_options": {"port": open_head.port}, "applications": [application]}
    (open_head.folder / "deploy.yaml").write_text(yaml.safe_dump(data))
    open_head.run("serve", "deploy", "deploy.yaml")

    def refused() -> bool:
        open_head.run("serve", "status")
        return REFUSED in " ".join(open_head.said().split())

    wait_until(refused, START_S, "it is refused", open_head.said)
    open_head.run("serve", "shutdown", "-y")
    open_head.wait_gone()
