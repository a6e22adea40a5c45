"""The command line: its frozen surface, what it passes on, and how it ends for each kind of bad input."""

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import click
import pytest
import typer.main
from typer.testing import CliRunner

from cluster.changes import Change
from cluster.spec import ServiceSpec, SpecError, spec_from_dict
from manta.cli import app

SURFACE = {
    "serve": {"MODEL_OR_YAML", "--port", "--host", "--model-name", "--dtype", "--address"},
    "plan": {"FILE", "--json", "--address", "--timeout"},
    "apply": {"FILE", "--yes", "-y", "--rotate-keys", "--address", "--timeout"},
    "status": {"name", "--json", "--address", "--timeout"},
    "down": {"name", "--address", "--timeout"},
    "generate": {
        "model",
        "prompt",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--top-k",
        "--seed",
        "--task",
        "--device",
        "--dtype",
        "--echo",
    },
    "train": {"FILE", "--steps", "--address"},
    "export": {"run", "out", "--step", "--dtype"},
    "extract": {"model", "out", "--task", "--dtype"},
    "version": set[str](),
}


@dataclass(frozen=True)
class FakeProgress:
    stage: str
    done: int = 0
    total: int = 0


@dataclass
class FakeService:
    """Stands in for a running service: Ctrl-C comes at once."""

    url: str = "http://127.0.0.1:8000"
    stopped: bool = False

    def wait(self) -> None:
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopped = True


@dataclass
class FakeLifecycle:
    """Records what the command line asks of `cluster.lifecycle`."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    service: FakeService = field(default_factory=FakeService)
    failure: BaseException | None = None
    changed: bool = True
    refused: bool = False

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    def serve(
        self,
        spec: ServiceSpec,
        address: str | None,
        on_progress: Callable[[Any], None],
        on_notice: Callable[[str], None],
    ) -> FakeService:
        on_notice("Ray has 8 GPUs")
        on_progress(FakeProgress("starting Ray"))
        on_progress(FakeProgress("loading experts", 0, 2))
        on_progress(FakeProgress("loading experts", 2, 2))
        self._note("serve", spec, address)
        return self.service

    def status(self, name: str | None, address: str | None, timeout_s: float) -> dict[str, Any]:
        self._note("status", name, address)
        parts = {key: [] for key in ("experts", "routers", "attention_nodes", "gateways", "events")}
        heading = {"name": "demo", "state": "running", "model": "demo", "spec_version": "v1", "resize": None}
        return {**heading, "controller": {"pid": 1, "host": "abcdef"}, **parts}

    def plan(self, spec: ServiceSpec, address: str | None, timeout_s: float = 60.0) -> Any:
        self._note("plan", spec.name, address)
        change = Change("router.replicas", 1, 2, "refused" if self.refused else "live", "what happens")
        found = types.SimpleNamespace(wanted=spec, changes=(change,) if self.changed else ())
        found.refused = found.changes if self.refused else ()
        return found

    def apply(
        self, planned: Any, address: str | None, on_progress: Callable[[Any], None], timeout_s: float | None
    ) -> None:
        self._note("apply", planned.wanted.name, address)
        if planned.refused:
            raise ValueError("router.replicas: cannot be changed while the service runs")
        on_progress(FakeProgress("starting", 1, 2))

    def rotate_keys(
        self, name: str, address: str | None, on_progress: Callable[[Any], None], timeout_s: float | None
    ) -> None:
        self._note("rotate_keys", name, address)

    def down(self, name: str | None, address: str | None, timeout_s: float) -> None:
        self._note("down", name, address)


@pytest.fixture
def lifecycle(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLifecycle]:
    fake = FakeLifecycle()
    module = types.ModuleType("cluster.lifecycle")
    for name in ("serve", "status", "down", "plan", "apply", "rotate_keys"):
        setattr(module, name, getattr(fake, name))
    module.Change, module.Plan = Change, object  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "cluster.lifecycle", module)
    shells = ("manta.foreground", "manta.change")
    for shell in shells:
        monkeypatch.delitem(sys.modules, shell, raising=False)
    yield fake
    for shell in shells:
        sys.modules.pop(shell, None)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "mixtral"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "mixtral", "dtype": "float32"}))
    return path


def run(*args: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(args), input=stdin)


def test_the_surface_is_frozen() -> None:
    group = typer.main.get_command(app)
    found = {
        name: {
            option
            for parameter in command.params
            for option in (
                parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
            )
        }
        - {"--help"}
        for name, command in group.commands.items()  # pyright: ignore[reportAttributeAccessIssue]
    }
    assert found == SURFACE


@pytest.mark.parametrize("command", SURFACE)
def test_help_names_every_option(command: str) -> None:
    text = click.unstyle(run(command, "--help").output)
    assert all(name in text for name in SURFACE[command])


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'pydantic', 'transformers', 'numpy', 'google.protobuf', 'yaml'}"
    code = f"import manta.cli, sys; found = {heavy} & set(sys.modules); sys.exit(', '.join(found) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version() -> None:
    assert re.fullmatch(r"manta \d+\.\d+\.\d+\n", run("version").output)


def test_serve_passes_the_options_on(lifecycle: FakeLifecycle, model_dir: Path) -> None:
    options = ["--port", "9000", "--host", "localhost", "--model-name", "m", "--dtype", "float32"]
    result = run("serve", str(model_dir), *options)
    assert result.exit_code == 0, result.output
    [(_, spec, address)] = lifecycle.calls
    assert (spec.api.port, spec.api.host, spec.model.name, spec.model.dtype) == (9000, "localhost", "m", "float32")
    assert (spec.model.directory, address) == (model_dir, None)


def test_serve_shows_progress_then_a_request_to_try_then_stops(lifecycle: FakeLifecycle, model_dir: Path) -> None:
    result = run("serve", str(model_dir))
    assert result.stderr.startswith("Ray has 8 GPUs\n")
    assert re.search(r"\d s  starting Ray\n +\d+\.\d s  loading experts\n", result.stderr)
    assert "curl http://127.0.0.1:8000/v1/completions" in result.stdout
    assert '"model": "mixtral"' in result.stdout
    assert "Stopped." in result.stderr
    assert lifecycle.service.stopped


def test_serve_reads_a_file_and_lets_options_win(lifecycle: FakeLifecycle, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("model: {path: mixtral, dtype: float32}\napi: {port: 8001}\n")
    assert run("serve", str(path), "--port", "9000").exit_code == 0
    [(_, spec, _)] = lifecycle.calls
    assert (spec.api.port, spec.model.dtype, spec.model.directory) == (9000, "float32", model_dir)


def test_files_on_a_clusters_hosts_are_not_looked_for_here(lifecycle: FakeLifecycle) -> None:
    assert run("serve", "/models/elsewhere", "--address", "head:6379").exit_code == 0
    assert lifecycle.calls[0][2] == "head:6379"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["serve"], "Missing argument"),
        (["serve", "/no/such/model"], "/no/such/model was given: there is no such directory here"),
        (["serve", "absent.yaml"], "absent.yaml: cannot be read"),
        (["serve", "{tmp}/broken.yaml"], "is not valid YAML: line 1"),
        (["serve", "{tmp}/typo.yaml"], "did you mean port?"),
        (["serve", "{tmp}/keys.yaml"], "api.keys_file"),
        (["serve", "{tmp}/weights.safetensors"], "is a file, but no service file"),
        (["serve", "{tmp}", "--port", "0"], "--port"),
        (["serve", "{tmp}", "--port", "http"], "--port"),
        (["serve", "{tmp}", "--dtype", "int4"], "--dtype"),
        (["serve", "{tmp}", "--host", "0.0.0.0"], "api.keys_file is not set"),
        (["serve", "{tmp}", "--model-name", ""], "model.name: '' was given"),
        (["serve", "{tmp}", "--prot", "1"], "No such option"),
        (["generate", "{tmp}"], "Missing argument"),
        (["generate", "/no/such/model", "x"], "there is no such directory here"),
        (["generate", "{tmp}/typo.yaml", "x"], "is a file; allowed: a model directory, or demo."),
        (["generate", "{tmp}", "x", "--temperature", "-1"], "--temperature"),
        (["generate", "{tmp}", "x", "--top-p", "0"], "--top-p"),
        (["generate", "{tmp}", "x", "--top-p", "1.1"], "--top-p"),
        (["generate", "{tmp}", "x", "--max-tokens", "0"], "--max-tokens"),
        (["serv"], "No such command"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    lifecycle: FakeLifecycle, tmp_path: Path, args: list[str], expected: str
) -> None:
    (tmp_path / "broken.yaml").write_text("model: {path: x")
    (tmp_path / "typo.yaml").write_text("model: {path: .}\napi: {prot: 1}\n")
    (tmp_path / "keys.yaml").write_text("model: {path: .}\napi: {keys_file: absent.txt}\n")
    (tmp_path / "weights.safetensors").write_text("")
    result = run(*(arg.format(tmp=tmp_path) for arg in args))
    text = " ".join(click.unstyle(result.stderr).split())
    assert result.exit_code == 2, result.output
    assert expected in text
    assert "Traceback" not in result.output
    assert lifecycle.calls == []


@pytest.mark.parametrize(
    ("failure", "exit_code", "expected"),
    [
        (SpecError([]), 2, "error: "),
        (ValueError("no layer 3 in model.safetensors"), 2, "error: no layer 3 in model.safetensors\n"),
        (RuntimeError("port 8000 is taken"), 1, "error: port 8000 is taken\n"),
        (TimeoutError("experts did not load in 600 s"), 1, "error: experts did not load in 600 s\n"),
        (KeyError("shape"), 1, "error: KeyError: 'shape' (MANTA_TRACEBACK=1 shows where)\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_a_failed_start_is_one_message(
    lifecycle: FakeLifecycle, model_dir: Path, failure: BaseException, exit_code: int, expected: str
) -> None:
    lifecycle.failure = failure
    result = run("serve", str(model_dir))
    assert result.exit_code == exit_code
    assert expected in result.stderr
    assert "Ready" not in result.output


def test_a_traceback_is_shown_on_demand(
    lifecycle: FakeLifecycle, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANTA_TRACEBACK", "1")
    lifecycle.failure = RuntimeError("port 8000 is taken")
    assert run("serve", str(model_dir)).exception is lifecycle.failure


def test_status_as_text_and_as_json(lifecycle: FakeLifecycle) -> None:
    text = run("status", "demo", "--address", "auto").output
    assert "demo (running): model demo, version v1" in text
    assert json.loads(run("status", "--json").output)["name"] == "demo"
    assert lifecycle.calls == [("status", "demo", "auto"), ("status", None, None)]


@pytest.fixture
def service_file(tmp_path: Path) -> str:
    path = tmp_path / "service.yaml"
    path.write_text("name: one\nmodel: {path: demo}\n")
    return str(path)


def test_a_plan_as_text_and_as_json(lifecycle: FakeLifecycle, service_file: str) -> None:
    text = run("plan", service_file).output
    assert re.search(r"router\.replicas +1 +2 +live +what happens", text)
    change = {"field": "router.replicas", "before": 1, "after": 2, "how": "live", "note": "what happens"}
    assert json.loads(run("plan", service_file, "--json").output) == {"service": "one", "changes": [change]}
    lifecycle.changed = False
    assert "nothing to change" in run("plan", service_file).output


def test_apply_asks_first_unless_told_not_to(lifecycle: FakeLifecycle, service_file: str) -> None:
    refused = run("apply", service_file)
    assert (refused.exit_code, "give --yes" in refused.output) == (2, True)
    assert ("apply", "one", None) not in lifecycle.calls
    done = run("apply", service_file, "--yes")
    assert (done.exit_code, "one is what" in done.output) == (0, True)
    assert lifecycle.calls[-1] == ("apply", "one", None)


def test_apply_asks_nobody_where_standard_input_is_closed(
    lifecycle: FakeLifecycle, service_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manta.change import apply_file  # not before `lifecycle` is in place

    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="give --yes"):
        apply_file(service_file, yes=False, address=None, timeout_s=None)
    assert ("apply", "one", None) not in lifecycle.calls


def test_apply_of_what_is_refused_says_so(lifecycle: FakeLifecycle, service_file: str) -> None:
    lifecycle.refused = True
    ended = run("apply", service_file)
    assert (ended.exit_code, "cannot be changed" in ended.output) == (2, True)


def test_down_stops_one_service(lifecycle: FakeLifecycle) -> None:
    assert run("down", "demo").output == "Stopped demo.\n"
    assert lifecycle.calls == [("down", "demo", None)]


def test_down_with_nothing_running_fails(lifecycle: FakeLifecycle) -> None:
    lifecycle.failure = RuntimeError("no service runs here")
    result = run("down")
    assert (result.exit_code, result.stderr) == (1, "error: no service runs here\n")


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the one-process service by one that repeats the prompt, and returns what it was asked."""
    asked: list[Any] = []

    class LocalService:
        def __init__(self, model_path: Path, dtype: str, device: str) -> None:
            asked.extend((model_path, dtype, device))

        def generate(self, prompt: str, sampling: Any, task: str) -> Iterator[str]:
            asked.extend((prompt, sampling, task))
            yield from ("a", " b")

    module = types.ModuleType("manta.local")
    module.LocalService = LocalService  # pyright: ignore[reportAttributeAccessIssue]
    module.check_device = lambda device: f"not on {device}"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "manta.local", module)
    return asked


def test_generate_streams_the_text(local: list[Any], model_dir: Path) -> None:
    result = run("generate", str(model_dir), "x = ", "--temperature", "0.5", "--top-k", "3", "--seed", "7", "--echo")
    assert (result.exit_code, result.stdout) == (0, "x = a b\n")
    assert result.stderr == "not on cpu\n"
    path, dtype, device, prompt, sampling, task = local
    assert (path, dtype, device, prompt, task) == (model_dir, "auto", "cpu", "x = ", "")
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.5, 3, 7, 128)
    assert not sampling.HasField("top_p")


@pytest.mark.parametrize(
    ("stored", "options", "said"),
    [("float16", [], True), ("float16", ["--dtype", "bfloat16"], False), ("bfloat16", [], False)],
)
def test_generate_says_that_float16_is_computed_in_float32(
    local: list[Any], tmp_path: Path, stored: str, options: list[str], said: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "dtype": stored}))
    result = run("generate", str(tmp_path), "x", *options)
    assert (result.exit_code, result.stdout) == (0, "a b\n")
    assert ("float16 and computed in float32" in result.stderr) == said


def test_generate_reads_a_prompt_from_standard_input(local: list[Any], model_dir: Path) -> None:
    assert run("generate", str(model_dir), "-", stdin="from a pipe").exit_code == 0
    assert local[3] == "from a pipe"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["caf\udce9"], "Invalid value for PROMPT"),  # as a byte that is no UTF-8 comes in an argument
        (["-"], "Invalid value for PROMPT"),
        (["hi", "--task", "caf\udce9"], "Invalid value for --task"),
        (["hi", "--max-tokens", "4294967296"], "--max-tokens"),
        (["hi", "--top-k", "4294967296"], "--top-k"),
    ],
)
def test_generate_refuses_what_an_engine_cannot_be_told(
    local: list[Any], model_dir: Path, arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, ["generate", str(model_dir), *arguments], input=b"caf\xe9")
    assert done.exit_code == 2
    assert words in done.stderr.replace("\n", " ")
    assert local == []


def test_generate_names_a_task(local: list[Any], model_dir: Path) -> None:
    assert run("generate", str(model_dir), "x", "--task", "C++ & co.").exit_code == 0
    assert local[-1] == "C++ & co."


def test_the_request_to_try_carries_a_key_when_the_service_needs_one(lifecycle: FakeLifecycle) -> None:
    from manta.foreground import ready_message

    spec = spec_from_dict({"model": {"path": "demo"}, "api": {"keys_file": "keys.txt"}})
    assert '-H "Authorization: Bearer $MANTA_API_KEY"' in ready_message(spec, "http://127.0.0.1:8000", 1.0)
