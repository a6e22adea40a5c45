"""What differs between two versions of a service, and how it can be changed."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import lifecycle
from cluster.changes import RULES, Change, changes_between
from cluster.layout import layout_of
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import ServiceSpec, spec_from_dict
from tests.random_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("changes") / "model"
    make_checkpoint(directory, seed=1)
    return directory


def service(directory: Path, /, **sections: dict[str, Any]) -> Service:
    data: dict[str, Any] = {"name": "one", "model": {"path": str(directory)}}
    for section, fields in sections.items():
        data[section] = {**data.get(section, {}), **fields}
    return resolve(spec_from_dict(data), Room((2.0,), own=True))


def test_the_same_file_changes_nothing(model: Path) -> None:
    assert changes_between(service(model), service(model)) == ()


@pytest.mark.parametrize(
    ("sections", "field", "before", "after", "how"),
    [
        ({"experts": {"replicas": 2}}, "experts.replicas", 1, 2, "live"),
        ({"experts": {"replicas": {"min": 1, "max": 3}}}, "experts.replicas", 1, {"min": 1, "max": 3}, "live"),
        ({"experts": {"overrides": {3: {"replicas": 2}}}}, "experts.overrides.3.replicas", None, 2, "live"),
        ({"experts": {"per_actor": 1}}, "experts.per_actor", "auto", 1, "rolling"),
        ({"experts": {"labels": {"a": "b"}}}, "experts.labels", {}, {"a": "b"}, "rolling"),
        ({"experts": {"on_missing": "degrade"}}, "experts.on_missing", "wait", "degrade", "rolling"),
        ({"router": {"replicas": 2}}, "router.replicas", 1, 2, "live"),
        ({"router": {"routing": "token"}}, "router.routing", "auto", "token", "live"),
        ({"attention": {"replicas": 2}}, "attention.replicas", 1, 2, "live"),
        ({"attention": {"accelerator_type": "H200"}}, "attention.accelerator_type", None, "H200", "rolling"),
        ({"attention": {"labels": {"a": "b"}}}, "attention.labels", {}, {"a": "b"}, "rolling"),
        ({"attention": {"max_sequences": 9}}, "attention.max_sequences", 64, 9, "rolling"),
        ({"api": {"replicas": 2}}, "api.replicas", 1, 2, "live"),
        ({"api": {"port": 9}}, "api.port", 8000, 9, "refused"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype", "auto", "bfloat16", "refused"),
        ({"model": {"window": 8}}, "model.window", "auto", 8, "refused"),
        ({"model": {"name": "other"}}, "model.name", None, "other", "rolling"),
        ({"autoscaling": {"interval_s": 1}}, "autoscaling.interval_s", 5, 1, "live"),
        ({"limits": {"drain_timeout_s": 1}}, "limits.drain_timeout_s", 30, 1, "live"),
        ({"limits": {"request_timeout_s": 1}}, "limits.request_timeout_s", 600, 1, "rolling"),
        ({"limits": {"answer_timeout_s": 5}}, "limits.answer_timeout_s", 60, 5, "rolling"),
        ({"limits": {"request": {"max_n": 1}}}, "limits.request.max_n", 128, 1, "rolling"),
    ],
)
def test_each_field_says_how_it_changes(
    model: Path, sections: dict[str, Any], field: str, before: object, after: object, how: str
) -> None:
    found = {change.field: change for change in changes_between(service(model), service(model, **sections))}
    change = found[field]
    assert (change.before, change.after, change.how) == (before, after, how)
    assert change.note
    assert all(name.startswith(field) or "overrides" in name for name in found)


@pytest.mark.parametrize(
    "sections",
    [
        {"api": {"replicas": 2}},
        {"api": {"keys_file": "keys"}},
        {"api": {"cors_origins": ["*"]}},
        {"model": {"name": "other"}},
        {"limits": {"request_timeout_s": 1}},
        {"limits": {"recovery_timeout_s": 1}},
        {"limits": {"request": {"delivery_timeout_s": 1}}},
    ],
)
def test_whatever_replaces_gateways_says_that_streams_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    (tmp_path / "keys").chmod(0o600)
    (change,) = changes_between(service(model), service(model, **sections))
    assert "a gateway that leaves ends its streams within limits.drain_timeout_s" in change.note


@pytest.mark.parametrize(
    ("window", "before", "after", "how"),
    [
        (16, "auto", 16, "rolling"),
        (16, 100, "auto", "rolling"),
        (16, 17, 15, "refused"),
        (None, 17, 16, "refused"),
        (None, 16, 17, "rolling"),
    ],
)
def test_a_context_is_not_lowered_below_what_caches_hold_of_a_sequence(
    model: Path, window: Any, before: Any, after: Any, how: str
) -> None:
    old, new = (service(model, model={"window": window, "max_context": context}) for context in (before, after))
    (change,) = changes_between(old, new)
    assert (change.field, change.how) == ("model.max_context", how)
    assert ("could not move there" if how == "refused" else "ends its streams within") in change.note


def test_another_model_under_the_same_path_is_refused(model: Path) -> None:
    before = service(model)
    after = replace(before, config=replace(before.config, rope_theta=7.0))
    (change,) = changes_between(before, after)
    assert isinstance(change, Change)
    assert (change.field, change.how) == ("model.path", "refused")
    assert "config.json" in change.note


def test_a_plan_is_the_same_on_every_host(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decided at the start stays decided: a plan made elsewhere replaces no part that it does not concern."""
    running = replace(service(model), room=Room((8.0, 8.0), own=False, replicas=1), loopback=True)
    monkeypatch.setattr(lifecycle, "joined", lambda address: nullcontext())
    monkeypatch.setattr(lifecycle, "services", lambda deadline: ["one"])
    monkeypatch.setattr(lifecycle, "running_service", lambda name, deadline: running)
    data = running.spec.model_dump() | {"router": {"replicas": 2}}
    planned = lifecycle.plan(spec_from_dict(data), None)
    assert (planned.wanted.room, planned.wanted.loopback) == (running.room, True)
    assert layout_of(planned.wanted).version == layout_of(running).version
    assert [change.field for change in planned.changes] == ["router.replicas"]


def test_every_field_of_the_schema_has_a_rule() -> None:
    def fields(section: Any, path: str = "") -> list[str]:
        names: list[str] = []
        for name, field in section.model_fields.items():
            inner = field.annotation
            nested = isinstance(inner, type) and hasattr(inner, "model_fields") and name != "replicas"
            names += fields(inner, f"{path}{name}.") if nested else [f"{path}{name}"]
        return names

    from cluster.changes import _matches  # pyright: ignore[reportPrivateUsage]

    for name in fields(ServiceSpec):
        assert any(_matches(name, start) for start, _, _ in RULES), name
