"""The application builder: what it takes, what it refuses, and that it makes no Ray call."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from cluster.app import build, build_service
from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import SpecError, spec_for_model
from manta_imports import shadows
from model.routing import Routing
from serving.settings import LEAST_UNREAD_BYTES, RequestLimits
from tests.random_checkpoint import make_checkpoint
from tests.routed_checkpoint import make_task_checkpoint

ROOT = Path(__file__).parents[2]
ROOM = Room((2.0,), own=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    directory = tmp_path_factory.mktemp("builder") / "mixtral"
    make_checkpoint(directory, seed=seed, num_experts=4)
    return directory


def deployments(application: Any) -> dict[str, Any]:
    """The deployments of an application, by name."""
    found, waiting = {}, [application._bound_deployment]
    while waiting:
        deployment = waiting.pop()
        found[deployment.name] = deployment
        waiting += [bound._bound_deployment for bound in deployment.init_args if hasattr(bound, "_bound_deployment")]
    return found


def test_building_makes_no_ray_call_and_needs_no_torch(model: Path) -> None:
    code = (
        "import sys; from cluster.app import build; import ray\n"
        f"build({{'model': {str(model)!r}}})\n"
        "sys.exit('Ray was started' if ray.is_initialized() else 'torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_keeps_names_of_classes_and_none_of_their_code(model: Path) -> None:
    """What Serve starts after the package was replaced is the new one's."""
    for deployment in deployments(build({"model": str(model)})).values():
        kept = cloudpickle.dumps(deployment.func_or_class)
        ours = [folder for folder in ("attention", "router", "serving") if f"{ROOT / folder}/".encode() in kept]
        assert not ours, f"{deployment.name}: code names the file that it is from"
        assert b"Part" in kept


def bounds(deployment: Any) -> tuple[int, int]:
    config = deployment._deployment_config.autoscaling_config
    return config.min_replicas, config.max_replicas


def test_a_model_and_fields_as_text(model: Path) -> None:
    args = {"model": str(model), "router.replicas": "2", "limits.drain_timeout_s": "7", "name": "other"}
    found = deployments(build(args))
    assert bounds(found["RouterReplica"]) == (2, 2)
    assert {one.name for one in found.values()} == {"Gateway", "RouterReplica", "AttentionNode"}
    assert found["Gateway"].init_args[1].name == "other"


def test_a_file_and_fields(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(f"name: from-file\nmodel: {{path: {model}}}\n")
    found = deployments(build({"file": str(file), "api.replicas": 3}))
    assert found["Gateway"].num_replicas == 3
    assert found["Gateway"].init_args[1].name == "from-file"


def test_sections(model: Path) -> None:
    found = deployments(build({"model": {"path": str(model)}, "attention": {"replicas": 2}}))
    assert bounds(found["AttentionNode"]) == (2, 2)


def test_only_a_changed_setting_makes_another_version(model: Path) -> None:
    def versions(**fields: object) -> dict[str, str | None]:
        spec = spec_for_model(model, {name.replace("__", "."): value for name, value in fields.items()})
        return {name: one.version for name, one in deployments(build_service(resolve(spec, ROOM))).items()}

    before = versions()
    assert versions() == before
    assert None not in before.values()
    resized = versions(router__replicas=3, attention__replicas=2, api__replicas=2, experts__replicas=4)
    assert resized == before
    assert versions(limits__drain_timeout_s=3, autoscaling__interval_s=1, experts__per_actor=1) == before
    changed = versions(attention__max_sequences=3)
    assert {name for name in before if before[name] != changed[name]} == {"AttentionNode"}
    changed = versions(experts__on_missing="degrade")
    assert {name for name in before if before[name] != changed[name]} == {"RouterReplica"}


def test_on_a_cluster_a_node_sets_a_whole_cpu_aside(model: Path) -> None:
    def cpus(room: Room) -> dict[str, float]:
        application = build_service(resolve(spec_for_model(model), room))
        return {name: one.ray_actor_options["num_cpus"] for name, one in deployments(application).items()}

    assert cpus(Room((8.0,), own=False)) == {"Gateway": 0.1, "RouterReplica": 0.1, "AttentionNode": 1.0}
    assert cpus(Room((8.0,), own=True)) == {"Gateway": 0.1, "RouterReplica": 0.1, "AttentionNode": 0.2}
    assert cpus(Room((2.0,), own=True)) == {"Gateway": 0.05, "RouterReplica": 0.05, "AttentionNode": 0.05}


def test_nodes_run_where_the_file_says(model: Path) -> None:
    def options(**attention: object) -> dict[str, Any]:
        found = deployments(build({"model": {"path": str(model)}, "attention": attention}))
        assert found["Gateway"].ray_actor_options.keys() == {"num_cpus", "num_gpus"}
        return found["AttentionNode"].ray_actor_options

    assert options(num_cpus=1) == {"num_cpus": 1, "num_gpus": 0}
    asked = options(num_cpus=1, num_gpus=0.1, accelerator_type="H200", labels={"zone": "a"})
    expected = {"num_cpus": 1, "num_gpus": 0.1, "accelerator_type": "H200", "label_selector": {"zone": "a"}}
    assert asked == expected


def test_a_node_with_a_share_of_a_gpu_hears_of_it(model: Path) -> None:
    found = deployments(build({"model": str(model), "attention.num_gpus": 0.25}))
    settings = found["AttentionNode"].init_args[0]
    assert (settings.device, settings.gpu_share) == ("cuda", 0.25)


def test_every_deployment_drains_as_long_as_the_service_file_says(model: Path) -> None:
    spec = spec_for_model(model, {"limits.drain_timeout_s": 7})
    for deployment in deployments(build_service(resolve(spec, ROOM))).values():
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 7
        assert deployment._deployment_config.graceful_shutdown_wait_loop_s < 1


@pytest.mark.parametrize(("fields", "degrade"), [({}, False), ({"experts.on_missing": "degrade"}, True)])
def test_routers_hear_what_to_do_without_an_expert(model: Path, fields: dict[str, Any], degrade: bool) -> None:
    found = deployments(build({"model": str(model), **fields}))
    assert found["RouterReplica"].init_args[0].degrade == degrade


def test_gateways_hear_what_one_request_may_cost(model: Path) -> None:
    def limits(args: dict[str, Any]) -> RequestLimits:
        return deployments(build({"model": str(model), **args}))["Gateway"].init_args[0].gateway.limits

    assert limits({}) == RequestLimits()
    given = {name: index for index, name in enumerate(RequestLimits.__dataclass_fields__, start=1)}
    given["max_unread_bytes"] += LEAST_UNREAD_BYTES
    assert limits({f"limits.request.{name}": value for name, value in given.items()}) == RequestLimits(**given)


@pytest.mark.parametrize(
    "args", [{}, {"model": "demo", "router.number": "2"}, {"model": "demo", "experts.per_actor": "nine"}]
)
def test_what_does_not_describe_a_service(args: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        build(args)


def test_experts_that_the_checkpoint_does_not_have(model: Path) -> None:
    with pytest.raises(SpecError, match="per_actor"):
        build({"model": str(model), "experts.per_actor": 5})


@pytest.mark.parametrize("given", ["sentence", "task"])
def test_a_routing_that_the_checkpoint_was_not_trained_for(model: Path, given: str) -> None:
    with pytest.raises(SpecError, match=f"router.routing: {given} was given; .* by token. Use auto or token, or serve"):
        build({"model": str(model), "router.routing": given})
    assert build({"model": str(model), "router.routing": "token"})


def test_every_part_hears_of_the_checkpoints_routing(tmp_path: Path) -> None:
    make_task_checkpoint(tmp_path, ("python", "prose"), seed=1)
    with pytest.raises(SpecError, match="router.routing: token was given; .* by task. Use auto or task"):
        build({"model": str(tmp_path), "router.routing": "token"})
    found = deployments(build({"model": str(tmp_path), "router.routing": "task"}))
    assert found["Gateway"].init_args[0].gateway.tasks == ("python", "prose")
    for name in ("RouterReplica", "AttentionNode"):
        assert found[name].init_args[0].config.routing == Routing("task", tasks=("python", "prose"))


def test_other_keys_in_the_same_file_make_another_version(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    def version() -> str | None:
        spec = spec_for_model(model, {"api.keys_file": str(keys)})
        return deployments(build_service(resolve(spec, ROOM)))["Gateway"].version

    keys.write_text("one-one-one-one-one\n")
    keys.chmod(0o600)
    before = version()
    assert version() == before
    keys.write_text("two-two-two-two-two\n")
    assert version() != before


@pytest.mark.parametrize("name", ["serving", "corpus"])
def test_a_folder_with_packages_of_our_names_is_left(
    model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve run` joins a cluster after it has built: Ray puts the folder that it is in then on the replicas' path."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    build({"model": str(model)})
    assert (Path.cwd() == tmp_path) == (name == "corpus")
    assert not shadows([str(Path.cwd())])


def test_replicas_that_would_import_others_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, as `serve deploy` builds."""
    (tmp_path / "router.py").touch()
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    monkeypatch.setattr("cluster.app.refuse_open", lambda address: None)
    monkeypatch.setattr("cluster.app.present_room", lambda: ROOM)
    build({"model": str(model)})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path} has a router of its own, and comes before Manta's packages"):
        build({"model": str(model)})
