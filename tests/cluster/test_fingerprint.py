"""Names of settings: equal for equal ones, now and under a later Manta."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fingerprint import fingerprint
from cluster.spec import spec_from_dict


@dataclass(frozen=True)
class Settings:
    directory: Path
    seconds: float
    sizes: tuple[int, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])
    secret: str = field(default="", repr=False)


BEFORE = Settings(Path("/model"), 600)


def test_a_field_that_a_later_one_adds_changes_nothing_until_it_is_set() -> None:
    later: Any = make_dataclass("Renamed", [("added", str, field(default="as before"))], bases=(Settings,), frozen=True)
    assert fingerprint(later(Path("/model"), 600)) == fingerprint(BEFORE)
    assert fingerprint(later(Path("/model"), 600, added="otherwise")) != fingerprint(BEFORE)


def test_every_value_counts_but_a_secret() -> None:
    others = [
        Settings(Path("/other"), 600),
        Settings(Path("/model"), 601),
        Settings(Path("/model"), 600, (1,)),
        Settings(Path("/model"), 600, (), {"a": "b"}),
        Settings(Path("/model"), 600, (), {"a": "c"}),
    ]
    assert len({fingerprint(one) for one in [BEFORE, *others]}) == len(others) + 1
    assert fingerprint(Settings(Path("/model"), 600.0, secret="key")) == fingerprint(BEFORE)


def test_a_file_that_writes_a_default_out_means_the_same() -> None:
    short, long = ({"model": {"path": "x"}}, {"model": {"path": "x"}, "limits": {"drain_timeout_s": 30.0}})
    assert fingerprint(spec_from_dict(short)) == fingerprint(spec_from_dict(long))


@given(st.recursive(st.integers() | st.text() | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=4)))
def test_plain_data_has_the_fingerprint_of_its_copy(data: Any) -> None:
    def copied(value: Any) -> Any:
        return tuple(map(copied, value)) if isinstance(value, list) else value

    assert fingerprint(data) == fingerprint(copied(data))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_is_no_plain_data_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no plain data"):
        fingerprint((1, value))
