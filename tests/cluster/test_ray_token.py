"""Ray's token: made and kept where others cannot read it, and presented to clusters that ask for it."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import ray_token
from cluster.ray_token import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE, keep_private, present_token
from tests.transport.control_plane import control_plane
from transport.strangers import ALLOW_VARIABLE, OpenCluster

# Ray keeps the token and the mode for a whole process.
DEMANDED = (
    "import os; os.umask(0)\n"
    "from cluster.ray_token import demand_token\n"
    "demand_token()\n"
    "from ray._raylet import AuthenticationTokenLoader, get_authentication_mode\n"
    "token = AuthenticationTokenLoader.instance().get_raw_token()\n"
    "print(get_authentication_mode(), os.environ['RAY_AUTH_MODE'], len(token))"
)


def demand(home: Path, code: str = DEMANDED, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `demand_token` in a process whose umask hides nothing."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**ours, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_its_owner_s_alone(tmp_path: Path) -> None:
    """Also where the environment says that Ray should ask for none."""
    done = demand(tmp_path, RAY_AUTH_MODE="disabled")
    assert done.stdout == "1 token 64\n", done.stderr
    file = tmp_path / ".ray" / "auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    before = file.read_text()
    assert demand(tmp_path).returncode == 0
    assert file.read_text() == before


def test_a_token_of_ray_s_own_is_kept_and_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("abcdef")
    file.chmod(0o644)
    assert demand(tmp_path).stdout == "1 token 6\n"
    assert (mode(file), file.read_text()) == (0o600, "abcdef")


def test_the_file_that_the_environment_names_is_made(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "token"
    assert demand(tmp_path, RAY_AUTH_TOKEN_PATH=str(file)).stdout == "1 token 64\n"
    assert mode(file) == 0o600
    assert not (tmp_path / ".ray").exists()


def test_a_token_in_the_environment_needs_no_file(tmp_path: Path) -> None:
    assert demand(tmp_path, RAY_AUTH_TOKEN="abcdef").stdout == "1 token 6\n"
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_home_directory() -> None:
    """As a container's user who is a mere number: a token in the environment will do."""
    code = f"from pathlib import Path\ndef home():\n    raise RuntimeError('none')\nPath.home = home\n{DEMANDED}"
    assert demand(Path("/"), code, RAY_AUTH_TOKEN="abcdef").stdout == "1 token 6\n"
    done = demand(Path("/"), code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("no home directory; name a file with RAY_AUTH_TOKEN_PATH")


@pytest.mark.parametrize("held", ["", " \n"])
def test_an_empty_file_is_no_token(tmp_path: Path, held: str) -> None:
    """Such as a full disk leaves, or an editor."""
    file = tmp_path / "token"
    file.write_text(held)
    file.chmod(0o644)
    assert demand(tmp_path, RAY_AUTH_TOKEN_PATH=str(file)).stdout == "1 token 64\n"
    assert mode(file) == 0o600


def test_where_no_token_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("no folder")
    done = demand(tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: Ray's token cannot be kept in" in done.stderr.splitlines()[-1]


def test_a_file_of_somebody_else_s_is_said_to_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o644)

    def refused(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with caplog.at_level(logging.WARNING):
        keep_private(file)
    assert "others can read it (Operation not permitted); `chmod 600` it" in caplog.text


@pytest.fixture
def modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that this process would have been put into; its token is `secret`."""
    found = list[str]()
    monkeypatch.setattr(ray_token, "_set_mode", found.append)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    return found


def test_a_cluster_gets_the_token_that_it_asks_for(modes: list[str]) -> None:
    with control_plane("secret") as address:
        present_token(address)
    assert modes == ["token"]


def test_the_token_of_another_cluster(modes: list[str]) -> None:
    with control_plane("another") as address, pytest.raises(ValueError, match="another token than the one in RAY_AUTH"):
        present_token(address)
    assert modes == []


def test_a_token_that_is_not_here(modes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE)
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "none"))
    with (
        control_plane("secret") as address,
        pytest.raises(ValueError, match="there is none here: copy .*none from the"),
    ):
        present_token(address)


def test_an_open_cluster_gets_none(modes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with control_plane(None) as address:
        with pytest.raises(OpenCluster):
            present_token(address)
        assert modes == []
        monkeypatch.setenv(ALLOW_VARIABLE, "1")
        present_token(address)
    assert modes == ["disabled"]
