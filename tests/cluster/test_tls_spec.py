"""`tls` in the service file: all three files or none, where they lie, and whom they concern."""

from pathlib import Path
from typing import Any

import pytest

from cluster.changes import changes_between
from cluster.layout import layout_of
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import SpecError, spec_from_dict
from tests.random_checkpoint import make_checkpoint
from transport.tls import TlsFiles

FILES = {"cert_file": "host.pem", "key_file": "host.key", "ca_file": "/etc/ca.pem"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls") / "model"
    make_checkpoint(directory, seed=1)
    return directory


def service(model: Path, tls: dict[str, Any], loopback: bool = False) -> Service:
    spec = spec_from_dict({"model": {"path": str(model)}, "tls": tls}, base=Path("/files"))
    return resolve(spec, Room((2.0,), own=True), loopback)


@pytest.mark.parametrize("left_out", [("cert_file",), ("key_file", "ca_file")])
def test_some_of_the_files_are_not_enough(left_out: tuple[str, ...]) -> None:
    given = {name: value for name, value in FILES.items() if name not in left_out}
    with pytest.raises(SpecError, match=f"tls: {' and '.join(left_out)} missing; give all three files, or none"):
        spec_from_dict({"model": {"path": "demo"}, "tls": given})


def test_relative_paths_start_at_the_service_files_folder(model: Path) -> None:
    expected = TlsFiles(Path("/files/host.pem"), Path("/files/host.key"), Path("/etc/ca.pem"))
    assert service(model, FILES).tls == expected


def test_without_files_or_without_other_hosts_there_is_no_tls(model: Path) -> None:
    assert service(model, {}).tls is None
    assert service(model, FILES, loopback=True).tls is None


def test_actors_are_started_with_it_and_what_runs_without_keeps_its_name(model: Path) -> None:
    assert layout_of(service(model, FILES)).version != layout_of(service(model, {})).version
    assert layout_of(service(model, FILES, loopback=True)).version == layout_of(service(model, {}, True)).version


def test_it_cannot_be_changed_while_the_service_runs(model: Path) -> None:
    changes = changes_between(service(model, {}), service(model, FILES))
    assert {(change.field, change.how) for change in changes} == {(f"tls.{name}", "refused") for name in FILES}
    assert all("cannot talk to each other" in change.note for change in changes)
