"""Where a process listens: folder permissions, leftovers, and which way another process connects."""

import os
import select
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from transport import address as address_module
from transport.address import Address, check_socket_folder, is_this_host, listen, socket_directory, this_host_id


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test alone, in which the socket folder is made."""
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def close(address: Address, sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
    Path(address.unix_path).unlink()


def connect(address: Address) -> socket.socket:
    sock = address.connect()
    _, writable, _ = select.select([], [sock], [], 10.0)
    assert writable
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return sock


def test_the_folder_is_closed_to_others(temporary_folder: Path) -> None:
    folder = socket_directory()
    assert folder.parent == temporary_folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert socket_directory() == folder


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_is_open_to_others_is_refused(temporary_folder: Path, mode: int) -> None:
    socket_directory().chmod(mode)
    with pytest.raises(PermissionError, match="remove it, or set TMPDIR to a folder of your own"):
        socket_directory()


def test_a_link_to_a_folder_is_refused(temporary_folder: Path) -> None:
    target = temporary_folder / "elsewhere"
    target.mkdir(mode=0o700)
    (temporary_folder / f"manta-{os.getuid()}").symlink_to(target)
    with pytest.raises(PermissionError):
        socket_directory()


def test_somebody_elses_folder_is_refused(temporary_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getuid()
    socket_directory().rename(temporary_folder / f"manta-{me + 1}")
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(PermissionError):
        socket_directory()


def test_neighbours_connect_over_the_unix_socket_and_others_over_tcp(temporary_folder: Path) -> None:
    address, sockets = listen("echo", "127.0.0.1")
    assert address.tcp_port > 0
    with connect(address) as near, connect(replace(address, host_id="elsewhere")) as far:
        assert near.family == socket.AF_UNIX
        assert far.family == socket.AF_INET
        assert not near.getblocking()
        assert not far.getblocking()
    close(address, sockets)


def test_tcp_is_opened_only_if_asked_for(temporary_folder: Path) -> None:
    address, sockets = listen("echo", None)
    assert (address.tcp_host, address.tcp_port, len(sockets)) == ("", 0, 1)
    with pytest.raises(ConnectionRefusedError, match="its own host only"):
        replace(address, host_id="elsewhere").connect()
    close(address, sockets)


def test_ipv6(temporary_folder: Path) -> None:
    try:
        address, sockets = listen("echo", "::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with connect(replace(address, host_id="elsewhere")) as far:
        assert far.family == socket.AF_INET6
    close(address, sockets)


def test_addresses_of_one_process_differ(temporary_folder: Path) -> None:
    first, second = listen("echo", None), listen("echo", None)
    assert first[0] != second[0]
    close(*first)
    close(*second)


def test_nobody_there_is_an_os_error(temporary_folder: Path) -> None:
    address, sockets = listen("echo", None)
    close(address, sockets)
    with pytest.raises(FileNotFoundError):
        address.connect()


def test_a_path_that_the_kernel_cannot_take_says_what_to_do(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary_folder / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(OSError, match="set TMPDIR to a shorter folder"):
        listen("echo", None)


def leave_behind(pid: int) -> Path:
    """A socket that nobody listens on any more."""
    path = socket_directory() / f"expert-{pid}-0123abcd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
    return path


def test_sockets_of_killed_processes_are_removed(temporary_folder: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    abandoned, mine = leave_behind(gone), leave_behind(os.getpid())
    strange = socket_directory() / "note.sock"
    strange.write_text("not of ours")
    close(*listen("echo", None))
    assert not abandoned.exists()
    assert mine.exists(), "a process that runs may be about to listen"
    assert strange.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(temporary_folder: Path) -> None:
    (temporary_folder / f"manta-{os.getuid()}").touch()
    with pytest.raises(PermissionError, match="is no folder; remove it, or set TMPDIR"):
        check_socket_folder()


def test_a_folder_with_too_long_a_name_is_told_before_anything_listens(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_socket_folder()
    long = temporary_folder / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(OSError, match="is over 107 bytes long; set TMPDIR to a shorter folder"):
        check_socket_folder()


def test_a_host_that_is_renamed_stays_the_same_host(temporary_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are started later must reach those that were started before."""
    address, sockets = listen("router", None)
    monkeypatch.setattr(address_module, "this_host_id", this_host_id.__wrapped__)  # as in another process
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert this_host_id.__wrapped__() != address.host_id
    connect(address).close()
    close(address, sockets)


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ("a/boot/mnt", True),
        ("b/boot/mnt", True),
        ("a/boot/another", False),  # a container of the same machine
        ("a/another/mnt", False),
        ("a/boot", False),
        ("b", False),
    ],
)
def test_which_hosts_are_this_one(monkeypatch: pytest.MonkeyPatch, theirs: str, same: bool) -> None:
    monkeypatch.setattr(address_module, "this_host_id", lambda: "a/boot/mnt")
    assert is_this_host(theirs) is same


def test_where_nothing_else_is_known_the_name_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "this_host_id", lambda: "a")
    assert is_this_host("a")
    assert not is_this_host("b")
