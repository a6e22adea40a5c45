"""The files in deploy/ say what this version understands."""

from pathlib import Path

import yaml

from cluster.spec import load_spec, spec_from_dict
from cluster.spec_schema import ServiceSpec

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
