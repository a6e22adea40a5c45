"""Ray's own command line, as the README has it: `serve run` and `serve deploy`, on a Ray of this test's own."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.integration.ray_head import PARTS, ROOT, STOP_S, Head, started_head
from tests.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.full]


@pytest.fixture
def head(checkpoint: tuple[Path, Oracle], tmp_path: Path) -> Iterator[Head]:
    """A Ray with Serve on a port of its own; a model beside it."""
    (tmp_path / "model").symlink_to(checkpoint[0])
    with started_head(tmp_path) as made:
        made.run("serve", "start", "--http-port", str(made.port))
        yield made


def test_serve_run(head: Head) -> None:
    """With a relative path and fields as text; Ctrl-C ends the service, its experts included."""
    args = ("model=model", "model.name=by-run", "limits.orphan_timeout_s=3")
    command = head.start("serve", "run", "cluster.app:build", *args)
    try:
        head.wait_healthy()
        answer = head.completion({"model": "by-run", "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True})
        assert answer["usage"]["completion_tokens"] == 3
        assert [part for part in PARTS if head.num_of(part) == 0] == []
    finally:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(command.pid, signal.SIGINT)
        command.wait(STOP_S)
    head.wait_gone()


def test_serve_deploy(head: Head) -> None:
    """The file as it is delivered, but for its port; every actor sets a whole CPU aside, of the four there are."""
    data = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    data["http_options"]["port"] = head.port
    data["applications"][0]["args"]["limits.orphan_timeout_s"] = 3
    (head.folder / "serve.yaml").write_text(yaml.safe_dump(data))
    head.run("serve", "deploy", "serve.yaml")
    head.wait_healthy()
    assert head.completion({"model": "demo", "prompt": "def", "max_tokens": 3})["choices"][0]["text"]
    assert head.num_of("ray::ExpertActor") == 1
    head.run("serve", "shutdown", "-y")
    head.wait_gone()
