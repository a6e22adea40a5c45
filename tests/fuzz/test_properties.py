"""The values at the limits are those that the schema and the settings name, and a request that fails is found."""

import math
from pathlib import Path
from typing import Any

import pytest

from serving.settings import RequestLimits
from tests.fuzz import properties
from tests.fuzz.extremes import BASES, allowed, extremes
from tests.fuzz.properties import enumerate_all, many, pairs, singles
from tests.fuzz.small_service import small_service

LIMITS = RequestLimits(max_n=4, max_stop_strings=3)
COMPLETION = extremes("/v1/completions", LIMITS, 320)


def quiet(name: str, executions: int, reached: str) -> None:
    del name, executions, reached


def test_limits_of_the_schema_and_what_is_beside_them() -> None:
    assert {0, 1, math.nextafter(0, -1), math.nextafter(1, 2)} <= {one for one in COMPLETION["min_p"] if _number(one)}
    assert {-(1 << 63), -(1 << 63) - 1, 1 << 64} <= {one for one in COMPLETION["seed"] if _number(one)}
    assert {"include_usage": True} in COMPLETION["stream_options"]


def test_limits_of_the_settings_and_one_more() -> None:
    assert {4, 5} <= {one for one in COMPLETION["n"] if _number(one)}
    assert ["a"] * 3 in COMPLETION["stop"]
    assert ["a"] * 4 in COMPLETION["stop"]


def test_every_field_has_values_of_its_own() -> None:
    for path, (body, _) in BASES.items():
        found = extremes(path, LIMITS, 320)
        assert found.keys() == body.model_json_schema()["properties"].keys()
        assert all(len(values) >= 5 for values in found.values())


def test_pairs_are_of_what_is_allowed_alone() -> None:
    kept = allowed("/v1/completions", COMPLETION)
    assert "x" not in kept["n"]
    assert {2, -2} <= {one for one in kept["presence_penalty"] if _number(one)}
    assert {"include_usage": True} in kept["stream_options"], "another field allows it"
    assert len(singles()) < len(pairs())


@pytest.mark.parametrize("name", ["fields", "pairs"])
def test_some_of_them_hold(name: str, seed: int) -> None:
    requests = {"fields": singles, "pairs": pairs}[name]
    outcome = enumerate_all(name, requests, 2, seed, quiet)
    assert not outcome.findings, outcome.findings
    assert outcome.executions > 10
    assert f"% of {len(requests()):,} {name}" in outcome.coverage


def test_mixes_hold(seed: int) -> None:
    outcome = many("mixes", 1, seed, quiet)
    assert not outcome.findings, outcome.findings
    assert outcome.executions > 10


def test_a_failure_inside_is_found_with_its_body(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    monkeypatch.setattr(properties, "BUILD", tmp_path)
    service = small_service(seed)

    def failing(path: str, body: dict[str, Any]) -> None:
        assert body["n"] != 4, "four"

    monkeypatch.setattr(type(service), "ask", lambda self, path, body: failing(path, body))
    requests = [("/v1/completions", {"n": number}) for number in range(6)]
    outcome = enumerate_all("fields", lambda: requests, 60, seed, quiet)
    (finding,) = outcome.findings
    assert outcome.executions == 6
    assert finding.words.startswith("AssertionError: four")
    assert finding.path is not None
    assert '"n": 4' in finding.path.read_text()


def test_mixes_are_made_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    monkeypatch.setattr(properties, "BUILD", tmp_path)
    monkeypatch.setattr(properties, "MAX_FINDINGS", 1)
    service = small_service(seed)

    def failing(requests: list[Any]) -> None:
        assert not any(path == "/tokenize" and "model" in body for path, body, _ in requests)

    monkeypatch.setattr(type(service), "ask_together", lambda self, requests: failing(requests))
    (finding,) = many("mixes", 60, seed, quiet).findings
    assert finding.words.count("/tokenize") == 1
    assert "/v1/completions" not in finding.words


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
