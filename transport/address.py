"""Where a process listens: a Unix socket for peers on its own host, TCP for the others."""

import contextlib
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path


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

    def connect(self, timeout_s: float) -> socket.socket:
        """Connects over the Unix socket on the same host, else over TCP.

        Raises:
            OSError: Nothing listens there, or not within `timeout_s`.
        """
        if self.host_id == this_host_id():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            try:
                sock.connect(self.unix_path)
            except OSError:
                sock.close()
                raise
            return sock
        return socket.create_connection((self.tcp_host, self.tcp_port), timeout_s)

    def __str__(self) -> str:
        return f"{self.tcp_host}:{self.tcp_port} ({Path(self.unix_path).name})"


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


def socket_directory() -> Path:
    """The folder, closed to other users, that holds this user's sockets.

    Raises:
        PermissionError: The folder exists and belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"manta-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users or belongs to one; remove it, then start again")
    return folder


def listen(role: str, tcp_host: str | None, backlog: int = 128) -> tuple[Address, list[socket.socket]]:
    """Opens a Unix socket and, unless `tcp_host` is None, a TCP socket on a free port of it; returns both and their address.

    Raises:
        OSError: The folder or the interface cannot be used.
    """
    path = socket_directory() / f"{role}-{os.getpid()}-{secrets.token_hex(4)}.sock"
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(str(path))
    unix.listen(backlog)
    listeners = [unix]
    port = 0
    if tcp_host is not None:
        tcp = socket.create_server((tcp_host, 0), backlog=backlog)
        listeners.append(tcp)
        port = int(tcp.getsockname()[1])
    return Address(this_host_id(), str(path), tcp_host or "", port), listeners
