"""What no single process of a service can have on a machine of our own."""

from typing import Any

import pytest

from cluster import lifecycle
from cluster.own_room import beyond_this_machine
from cluster.room import Room
from cluster.spec import SpecError, spec_from_dict


def problems(num_cpus: float, num_gpus: float, **sections: Any) -> list[str]:
    spec = spec_from_dict({"model": {"path": "demo"}, **sections})
    return [str(problem) for problem in beyond_this_machine(spec, num_cpus, num_gpus)]


def test_the_defaults_fit_any_machine() -> None:
    assert problems(1.0, 0.0) == []


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"experts": {"num_gpus": 1}}, "experts.num_gpus: 1 was given, and Ray finds no GPU on this machine"),
        ({"attention": {"num_gpus": 0.1}}, "attention.num_gpus: 0.1 was given, and Ray finds no GPU"),
        ({"attention": {"num_cpus": 2.5}}, "attention.num_cpus: 2.5 was given, and Ray finds 2 CPUs"),
        ({"experts": {"overrides": {3: {"num_cpus": 8}}}}, "experts.overrides.3.num_cpus: 8 was given, and Ray finds"),
    ],
)
def test_what_is_more_than_there_is(sections: dict[str, Any], told: str) -> None:
    [problem] = problems(2.0, 0.0, **sections)
    assert problem.startswith(told)
    assert problem.endswith("with --address.")
    assert problems(8.0, 1.0, **sections) == []


def test_as_much_as_there_is() -> None:
    assert problems(2.0, 1.0, experts={"num_gpus": 1, "num_cpus": 2}) == []


class Session:
    """A Ray that has been started, as far as a start needs it."""

    own = joined = True
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_start_ends_at_once_and_the_ray_that_it_started_too(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    monkeypatch.setattr(lifecycle, "open_session", lambda address: session)
    monkeypatch.setattr(lifecycle, "present_room", lambda: Room((2.0,), own=True))
    monkeypatch.setattr(lifecycle, "num_gpus", lambda: 0.0)
    monkeypatch.setattr(lifecycle, "check_port_free", lambda host, port: None)
    monkeypatch.setattr(lifecycle, "claim", lambda service: pytest.fail("it was started"))
    spec = spec_from_dict({"model": {"path": "demo"}, "experts": {"num_gpus": 1}})
    with pytest.raises(SpecError, match="experts.num_gpus: 1 was given, and Ray finds no GPU on this machine"):
        lifecycle.serve(spec, None, lambda progress: None)
    assert session.closed
