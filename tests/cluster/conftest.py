"""Services whose experts are stood in for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster import resize as resize_module
from cluster import secret, stored
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import spec_from_dict
from tests.cluster.fake_experts import FakeKeeper
from tests.random_checkpoint import make_checkpoint

SMALL = Room((2.0,), own=True)


@pytest.fixture
def make(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Service]:
    """Makes services of two shards, by their `experts` sections; no replica of theirs is a process."""
    make_checkpoint(tmp_path / "model", seed=seed, num_experts=4)
    monkeypatch.setattr(fleet_module, "ExpertKeeper", FakeKeeper)
    for name in ("release", "release_layout"):
        monkeypatch.setattr(fleet_module, name, lambda *given: None)
    monkeypatch.setattr(resize_module, "GRACE_S", 0.2)

    def service(room: Room = SMALL, **experts: Any) -> Service:
        spec = {"model": {"path": str(tmp_path / "model")}, "experts": experts, "limits": {"load_timeout_s": 0.3}}
        return resolve(spec_from_dict(spec), room)

    return service


@pytest.fixture
def ray_store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """What is in Ray's store, without Ray."""
    kept: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        if overwrite or key not in kept:
            kept[key] = value

    for module in (stored, secret):
        monkeypatch.setattr(module, "_internal_kv_put", put)
        monkeypatch.setattr(module, "_internal_kv_get", lambda key, **given: kept.get(key))
        monkeypatch.setattr(module, "_internal_kv_del", lambda key, **given: kept.pop(key, None))
    return kept
