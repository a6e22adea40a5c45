"""The file of API keys: what it may hold, and a digest by which two contents are told apart without showing a key."""

import hashlib
import hmac
import logging
import stat
from pathlib import Path

from cluster.spec import Problem, ServiceSpec, SpecError

logger = logging.getLogger(__name__)

FIELD = "api.keys_file"
MIN_KEY_CHARS = 16
MAX_KEY_CHARS = 512
MAX_FILE_BYTES = 1 << 20
COMMENT = "#"
# Of scrypt: a tenth of a second and 32 MiB, so that a digest which got out does not give short keys away.
COST = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 1 << 26, "dklen": 32}  # bytes, of both


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Reads the keys, one a line; blank lines and lines that start with # are none.

    Raises:
        SpecError: The file cannot be read, others may write to it, or a line is no key; never shows a key.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe is read once, and every gateway reads it
            raise _refused(path, "is a folder, a pipe or a device", "make a file, with one API key a line")
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})", "make it, with one API key a line") from error
    if len(data) > MAX_FILE_BYTES:
        raise _refused(path, f"has over {MAX_FILE_BYTES} bytes", "is it a file of API keys, one a line?")
    _check_mode(path, mode)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _refused(path, "is not text in UTF-8", "write one API key a line") from error
    keys: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith(COMMENT):
            _check_key(path, number, text)
            keys.append(text)
    if not keys:
        raise _refused(path, "holds no key", "write one a line, or leave the field out")
    return tuple(dict.fromkeys(keys))


def digest_of(keys: tuple[str, ...], service: str) -> str:
    """Returns a digest of a set of keys; empty: there are none. No key can be had from it.

    Args:
        service: The name of the service that they are for: the salt, so that equal keys of two have other digests.
    """
    if not keys:
        return ""
    data = "\n".join(sorted(keys)).encode()
    return hashlib.scrypt(data, salt=f"manta/{service}/api-keys".encode(), **COST).hex()


def keys_and_digest(spec: ServiceSpec) -> tuple[tuple[str, ...], str]:
    """Returns the keys that a service file names, and their digest.

    Raises:
        SpecError: As `read_api_keys`.
    """
    keys = read_api_keys(Path(spec.api.keys_file)) if spec.api.keys_file is not None else ()
    return keys, digest_of(keys, spec.name)


def check_digest(spec: ServiceSpec, digest: str) -> None:
    """Does nothing if the file holds, on this host, the keys that a digest was made of.

    Raises:
        SpecError: It holds others, or as `read_api_keys`.
    """
    _, found = keys_and_digest(spec)
    if not hmac.compare_digest(found, digest):
        raise _refused(
            Path(spec.api.keys_file or ""),
            "holds other keys on the controller's host than where the change was asked for",
            "copy it to the same path on every host of the cluster, then try again",
        )


def _check_mode(path: Path, mode: int) -> None:
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refused(path, f"has mode {mode:04o}: others can add keys to it", f"run: chmod 600 {path}")
    if mode & stat.S_IROTH:  # not refused: where secrets are mounted, as in Kubernetes, they often are 0644
        logger.warning("%s: %s can be read by every user of this host (mode %04o); chmod 600", FIELD, path, mode)


def _check_key(path: Path, number: int, key: str) -> None:
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise _refused(
            path,
            f"line {number} holds a space or a character that no HTTP header takes",
            "a key is printable ASCII without spaces; a comment is a line of its own that starts with #",
        )
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        raise _refused(
            path,
            f"line {number} has {len(key)} characters; allowed: {MIN_KEY_CHARS} to {MAX_KEY_CHARS}",
            "make one that nobody can guess: openssl rand -hex 32",
        )


def _refused(path: Path, what: str, remedy: str) -> SpecError:
    return SpecError([Problem(FIELD, f"{path} {what}; {remedy}.")])
