"""TLS on connections between hosts, where the service file names certificates (`tls`). Unix sockets stay plain.

Both sides show a certificate of the service's authority. Names in them are not compared: hosts come and go, and each
end proves beside that it knows the service's key, in a handshake that the server's certificate is part of. So whoever
has a certificate but not the key gets nothing, and nor does whoever stands between with a certificate of his own.
"""

import errno
import hashlib
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transport.errors import HandshakeError

PIECE_BYTES = 256 << 10  # of one call; it holds no lock meanwhile, and makes records of 16 KiB
Buffer = bytes | memoryview


@dataclass(frozen=True)
class TlsFiles:
    """Where a host has its certificates; PEM.

    Args:
        cert_file: This host's certificate, and those between it and the authority, if any.
        key_file: Its private key.
        ca_file: The authority's certificate: what other hosts' are checked by.
    """

    cert_file: Path
    key_file: Path
    ca_file: Path


class Tls:
    """One process's side of TLS.

    Raises:
        ValueError: A file cannot be read or does not fit the others; names it.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.certificate = _digest(_first_certificate(files.cert_file))
        """What the own certificate is known by; the `TlsSocket.peer_certificate` of whoever connects here."""
        self._server = _context(files, ssl.PROTOCOL_TLS_SERVER)
        self._client = _context(files, ssl.PROTOCOL_TLS_CLIENT)

    def accept(self, sock: socket.socket) -> "TlsSocket":
        """Returns the accepting side of a connection, still to be established."""
        return TlsSocket(self._server, sock, server_side=True)

    def connect(self, sock: socket.socket) -> "TlsSocket":
        """Returns the connecting side of a connection, still to be established."""
        return TlsSocket(self._client, sock, server_side=False)


def load_tls(files: TlsFiles | None) -> Tls | None:
    """Reads certificates, if there are any.

    Raises:
        ValueError: A file cannot be read or does not fit the others; names it.
    """
    return None if files is None else Tls(files)


class TlsSocket:
    """What a connection needs of a socket, over TLS. Its methods raise BlockingIOError where a socket's would.

    Nothing of TLS is held before `establish`: for a silent connection there is none.
    """

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, server_side: bool) -> None:
        self._context = context
        self.server_side = server_side
        self._socket = sock
        self._ssl: ssl.SSLSocket | None = None
        self.family = sock.family

    def fileno(self) -> int:
        return (self._ssl or self._socket).fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        (self._ssl or self._socket).setsockopt(level, option, value)

    @property
    def peer_certificate(self) -> bytes:
        """What the other side's certificate is known by, once the connection is established."""
        assert self._ssl is not None
        return _digest(self._ssl.getpeercert(binary_form=True) or b"")

    def establish(self) -> None:
        """Goes on with TLS's own handshake; it is done when this returns.

        Raises:
            ssl.SSLWantReadError: The other side has to say something first.
            ssl.SSLWantWriteError: The socket is not connected yet, or takes nothing more at the moment.
            HandshakeError: The other side shows no certificate of the authority, or speaks no TLS 1.3.
            OSError: The connection has ended, or could not be made.
        """
        try:
            if self._ssl is None:
                self._ssl = self._wrap()
            self._ssl.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            raise HandshakeError(f"TLS was refused: {_reason(error)}") from error

    def _wrap(self) -> ssl.SSLSocket:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        try:
            self._socket.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise ssl.SSLWantWriteError from None
            raise
        return self._context.wrap_socket(
            self._socket, self.server_side, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )

    def sendmsg(self, parts: Iterable[Buffer], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Sends the beginning of the parts, as much as the socket takes; returns how much.

        What it could not send must be given again, unchanged: a record may be under way.
        """
        del ancillary, flags
        assert self._ssl is not None
        sent = 0
        for piece in _pieces(parts):
            try:
                sent += self._ssl.send(piece)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if sent:
                    return sent
                raise BlockingIOError from None
        return sent

    def send(self, data: Buffer, flags: int = 0) -> int:
        return self.sendmsg((data,), (), flags)

    def recv_into(self, space: memoryview) -> int:
        assert self._ssl is not None
        try:
            return self._ssl.recv_into(space)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # nobody says goodbye: half a frame counts for nothing anyway
            return 0

    @property
    def pending_bytes(self) -> int:
        """Bytes that were read from the socket and have not been taken: the loop does not hear of them."""
        return self._ssl.pending() if self._ssl is not None else 0

    def close(self) -> None:
        (self._ssl or self._socket).close()


def _pieces(parts: Iterable[Buffer]) -> Iterator[memoryview]:
    """Yields what is to be sent in pieces of PIECE_BYTES at most, small parts joined: each piece costs a call."""
    joined: list[memoryview] = []
    num_bytes = 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            piece, view = view[: PIECE_BYTES - num_bytes], view[PIECE_BYTES - num_bytes :]
            joined.append(piece)
            num_bytes += len(piece)
            if num_bytes == PIECE_BYTES:
                yield _one(joined)
                joined, num_bytes = [], 0
    if joined:
        yield _one(joined)


def _one(pieces: list[memoryview]) -> memoryview:
    return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # connections stay; none is resumed
    try:
        context.load_cert_chain(files.cert_file, files.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise ValueError(f"tls: {files.cert_file} and {files.key_file} are no pair: {_reason(error)}") from error
    try:
        context.load_verify_locations(files.ca_file)
    except OSError as error:
        raise ValueError(f"tls.ca_file: {files.ca_file} is no certificate: {_reason(error)}") from error
    return context


def _no_password() -> bytes:
    """Instead of asking at the terminal, where nobody may be."""
    raise ValueError("the key is encrypted; store it without a password, readable by its owner alone")


def _first_certificate(path: Path) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(_first_block(path.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"tls.cert_file: {path} is no certificate: {_reason(error)}") from error


def _first_block(text: str) -> str:
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    if begin < 0 or end < begin:
        raise ValueError(f"it holds nothing between {ssl.PEM_HEADER} and {ssl.PEM_FOOTER}")
    return text[begin : end + len(ssl.PEM_FOOTER)]


def _digest(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()


def _reason(error: Exception) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)) or str(error)
