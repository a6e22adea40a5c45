"""Where the API cannot listen, and what to do about it."""

import errno
import os
import socket

import pytest

from cluster.ingress import check_port_free


def test_a_free_port_and_one_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        other.listen()
        with pytest.raises(ValueError, match=rf"api.port: {port} was given, .* stop what listens there, or .* --port"):
            check_port_free("127.0.0.1", port)
    check_port_free("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "nobody.invalid", "x" * 64, "a..b", "2001:db8::1"])
def test_a_host_that_is_not_this_one_is_named_and_not_the_port(host: str) -> None:
    with pytest.raises(ValueError, match=f"api.host: {host} was given.* with --host") as caught:
        check_port_free(host, 8000)
    assert "api.port" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "told"), [(errno.EACCES, "ports below 1024 are for root"), (errno.EAFNOSUPPORT, "api.host: ::1 was given")]
)
def test_what_the_system_does_not_allow(monkeypatch: pytest.MonkeyPatch, code: int, told: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(ValueError, match=told):
        check_port_free("::1", 80)
