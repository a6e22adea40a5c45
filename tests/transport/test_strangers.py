"""Whether a cluster lets strangers in is found out by asking as one; the control plane is stood in for."""

import socket

import pytest

from tests.transport.control_plane import control_plane
from transport import strangers
from transport.strangers import ALLOW_VARIABLE, OpenCluster, asks_for_token, refuse_open


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_who_is_turned_away(scheme: str) -> None:
    with control_plane(None) as address:
        assert not asks_for_token(scheme + address)
        assert not asks_for_token(scheme + address, "any")
    with control_plane("secret") as address:
        assert asks_for_token(scheme + address)
        assert asks_for_token(scheme + address, "another")
        assert not asks_for_token(scheme + address, "secret")


def test_a_cluster_that_asks_for_a_token_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    with control_plane("secret") as address:
        refuse_open(address)


@pytest.mark.parametrize("setting", [None, "", "0", "true"])
def test_an_open_cluster_is_refused_with_the_commands_that_mend_it(
    setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    if setting is not None:
        monkeypatch.setenv(ALLOW_VARIABLE, setting)
    with control_plane(None) as address, pytest.raises(OpenCluster) as caught:
        refuse_open(address)
    said = str(caught.value)
    assert said.startswith(f"the Ray cluster at {address} runs without authentication: whoever reaches a port")
    for command in ("ray get-auth-token --generate", "RAY_AUTH_MODE=token ray start --head", f"{ALLOW_VARIABLE}=1"):
        assert command in said


def test_it_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_VARIABLE, "1")
    with control_plane(None) as address:
        refuse_open(address)


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with control_plane("secret") as address:
        assert asks_for_token(address)


def test_nobody_there_or_somebody_silent_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="does not answer"):
            asks_for_token(address)
    with pytest.raises(ConnectionError, match=f"the Ray cluster at {address} does not answer"):
        asks_for_token(address)


def test_half_of_ray_s_tls_settings_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.delenv("RAY_TLS_CA_CERT", raising=False)
    with pytest.raises(ValueError, match="RAY_USE_TLS is set, and RAY_TLS_CA_CERT is not"):
        asks_for_token("127.0.0.1:1")
