"""The files in deploy/ say what this version understands."""

from pathlib import Path

import yaml

from cluster.spec import load_spec, spec_from_dict
from cluster.spec_schema import ServiceSpec
from training.mesh import MeshShape, mesh_shape
from training.resolve import model_of, sources_of, workers_of
from training.spec import load_training

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_service_is_valid_and_shows_the_defaults() -> None:
    example = load_spec(DEPLOY / "service.yaml")
    default = spec_from_dict({"name": example.name, "model": {"path": "demo"}})
    assert example == default


def test_the_example_service_shows_every_section() -> None:
    shown = yaml.safe_load((DEPLOY / "service.yaml").read_text(encoding="utf-8"))
    assert set(shown) == set(ServiceSpec.model_fields)


def test_the_serve_file_is_what_ray_serve_reads() -> None:
    from ray.serve.schema import ServeDeploySchema

    data = yaml.safe_load((DEPLOY / "serve.yaml").read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(data)
    assert schema.http_options.host == "127.0.0.1"
    [application] = schema.applications
    assert application.import_path == "cluster.app:build"
    assert spec_from_dict({"model": {"path": application.args["model"]}}).model.served_name == "demo"


def test_the_example_training_run_can_be_started() -> None:
    """Its model, its tokenizer, its data and its workers fit each other, as `manta train` checks before it starts."""
    example = load_training(DEPLOY / "training.yaml")
    config = model_of(example)
    assert config.vocab_size == 4096
    assert all(Path(source.path).exists() for source in sources_of(example))
    workers = workers_of(example)
    assert mesh_shape(workers.most, workers.expert_parallel, config.num_experts) == MeshShape(2, 1)
