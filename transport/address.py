"""Where a process listens: a Unix socket for peers on its own host, TCP for the others."""

import contextlib
import errno
import functools
import os
import secrets
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

MAX_PATH_BYTES = 107  # of a Unix socket, on Linux
NUM_ID_PARTS = 3  # of a host's id: its name, its boot's and its mount namespace, which alone are enough


@dataclass(frozen=True, order=True)
class Address:
    """One process's data-plane address; unique per process, so it also serves as the process's identity.

    Args:
        host_id: Identifies the machine (or container) whose Unix sockets can be reached.
        unix_path: The Unix socket's path on that host.
        tcp_host: The address that other hosts connect to.
        tcp_port: The port there; 0 when the process listens on its Unix socket only.
    """

    host_id: str
    unix_path: str
    tcp_host: str
    tcp_port: int

    def connect(self) -> socket.socket:
        """Starts to connect over the Unix socket on the same host, else over TCP; never waits for the other side.

        Returns:
            A non-blocking socket. If it is still connecting, it becomes writable when it is connected or has failed.

        Raises:
            OSError: Nothing listens there.
        """
        if is_this_host(self.host_id):
            return _start_connecting(socket.AF_UNIX, self.unix_path)
        if not self.tcp_port:
            raise ConnectionRefusedError(f"{self} listens on its own host only, and that is not this one")
        return _start_connecting(_tcp_family(self.tcp_host), (self.tcp_host, self.tcp_port))

    def __str__(self) -> str:
        return f"{self.tcp_host}:{self.tcp_port} ({Path(self.unix_path).name})"


def _start_connecting(family: socket.AddressFamily, target: str | tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    code = sock.connect_ex(target)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _tcp_family(tcp_host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in tcp_host else socket.AF_INET


@functools.cache
def this_host_id() -> str:
    """Two processes with the same id can reach each other's Unix sockets.

    The boot id tells machines apart, the mount namespace tells containers on one machine apart.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/mnt"))
    return "/".join(parts)


def is_this_host(host_id: str) -> bool:
    """Whether `host_id` is this host's, whatever the host was called when it was made: names change while it runs."""
    theirs, own = host_id.split("/"), this_host_id().split("/")
    return theirs == own or (len(theirs) == len(own) == NUM_ID_PARTS and theirs[1:] == own[1:])


def socket_directory() -> Path:
    """The folder, closed to other users, that holds this user's sockets.

    Raises:
        PermissionError: The folder exists and belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"manta-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()  # a link could lead where others can write
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{folder}, for sockets, is open to other users, belongs to one or is no folder; remove it, or set TMPDIR "
            "to a folder of your own, then start again"
        )
    return folder


def check_socket_folder() -> None:
    """Does nothing if processes of this user can listen on Unix sockets.

    Raises:
        OSError: They cannot; says why, and what to do.
    """
    _socket_path("attention-node")


def _remove_abandoned(folder: Path) -> None:
    """Removes the sockets of processes that were killed: they could not do it themselves."""
    for path in folder.glob("*.sock"):
        pid = path.stem.split("-")[-2:-1]
        if pid and pid[0].isdecimal() and not _runs(int(pid[0])) and _refuses(path):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refuses(path: Path) -> bool:
    """Asked too because a process of another container may have made it."""
    try:
        _start_connecting(socket.AF_UNIX, str(path)).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _socket_path(role: str) -> Path:
    path = socket_directory() / f"{role}-{os.getpid()}-{secrets.token_hex(4)}.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(f"the socket path {path} is over {MAX_PATH_BYTES} bytes long; set TMPDIR to a shorter folder")
    return path


def listen(role: str, tcp_host: str | None, backlog: int = 128) -> tuple[Address, list[socket.socket]]:
    """Opens a Unix socket and, unless `tcp_host` is None, a TCP socket on a free port of it.

    Returns:
        The address and the sockets that listen there.

    Raises:
        OSError: The folder or the interface cannot be used.
    """
    path = _socket_path(role)
    _remove_abandoned(path.parent)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(str(path))
    unix.listen(backlog)
    listeners = [unix]
    port = 0
    if tcp_host is not None:
        tcp = socket.create_server((tcp_host, 0), family=_tcp_family(tcp_host), backlog=backlog)
        listeners.append(tcp)
        port = int(tcp.getsockname()[1])
    return Address(this_host_id(), str(path), tcp_host or "", port), listeners
