"""Ray's own token: whoever has it may use the cluster. Asked for by every Ray that Manta starts, and kept private."""

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError

from transport.strangers import asks_for_token, refuse_open

logger = logging.getLogger(__name__)

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # the token itself
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # or the file that holds it
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def demand_token() -> None:
    """Makes the Ray that this process starts next ask for a token, whatever the environment says; there is one then.

    Raises:
        RuntimeError: There is no token, and none can be kept.
        ValueError: Its file cannot be read.
    """
    _set_mode("token")
    if not _has_token():
        _make_token(token_file())
    _keep_file_private()


def present_token(address: str) -> None:
    """Prepares this process for a cluster that it is about to join: with the token, if it asks for one.

    Raises:
        OpenCluster: It asks for none, and that has not been allowed.
        ValueError: It asks for a token, and there is none here, or another one.
        ConnectionError: It does not answer.
    """
    if not asks_for_token(address):
        refuse_open(address)
        _set_mode("disabled")  # what the cluster calls back would not present one either
        return
    if not _has_token():
        raise ValueError(
            f"the Ray cluster at {address} asks for its token, and there is none here: copy {token_file()} from the "
            f"cluster's head (mode 600), or set {TOKEN_VARIABLE}"
        )
    _keep_file_private()
    if asks_for_token(address, AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)):
        where = TOKEN_VARIABLE if os.environ.get(TOKEN_VARIABLE) else str(token_file())
        raise ValueError(f"the Ray cluster at {address} asks for another token than the one in {where}")
    _set_mode("token")


def token_file() -> Path:
    """Returns where Ray keeps the token, unless RAY_AUTH_TOKEN holds it.

    Raises:
        RuntimeError: This user has no home directory, and no file is named.
    """
    if given := os.environ.get(PATH_VARIABLE):
        return Path(given)
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError as error:  # such as a container's user who is a mere number
        raise RuntimeError(
            f"Ray's token has no place: this user has no home directory; name a file with {PATH_VARIABLE}"
        ) from error


def keep_private(path: Path) -> None:
    """Makes a token's file readable by its owner only: Ray writes it so that all users of the host can read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & OTHERS:
            path.chmod(mode & ~OTHERS)
    except OSError as error:  # another user's, or a mounted secret: no reason not to use it
        logger.warning("%s holds Ray's token and others can read it (%s); `chmod 600` it", path, error.strerror)


def _keep_file_private() -> None:
    if not os.environ.get(TOKEN_VARIABLE):
        keep_private(token_file())


def _has_token() -> bool:
    """Whether there is a token.

    Raises:
        ValueError: Its file cannot be read.
    """
    if not os.environ.get(TOKEN_VARIABLE) and _is_blank(token_file()):
        return False  # if RAY_AUTH_TOKEN_PATH names it, Ray makes an error of that
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return loader.has_token(ignore_auth_mode=True)
    except AuthenticationError as error:
        raise ValueError(f"Ray's token cannot be used: {error}") from error


def _is_blank(path: Path) -> bool:
    """Whether a token's file is not there, or holds nothing, such as a full disk leaves, or an editor."""
    try:
        return not path.read_bytes().strip()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # whoever uses it says why it cannot


def _make_token(path: Path) -> None:
    """Writes a new token, whole or not at all, where only this user can read it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # mode 600
            file.write(generate_new_authentication_token())
            file.flush()
            if _is_blank(path):
                path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process was faster
                os.link(file.name, path)
    except OSError as error:
        raise RuntimeError(
            f"Ray's token cannot be kept in {path}: {error.strerror or error}; make the folder writable, or name "
            f"another file with {PATH_VARIABLE}"
        ) from error
    AuthenticationTokenLoader.instance().reset_cache()


def _set_mode(mode: str) -> None:
    os.environ[MODE_VARIABLE] = mode
    Config.initialize("")  # this process has read the variable already
