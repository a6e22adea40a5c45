"""The file of API keys: what it may hold, and how another content is noticed without showing a key."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.api_keys import MAX_FILE_BYTES, check_digest, digest_of, read_api_keys
from cluster.app import gateway_settings
from cluster.changes import changes_between
from cluster.resize import _of_application  # pyright: ignore[reportPrivateUsage]
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import SpecError, spec_from_dict
from cluster.stored import store_service
from tests.random_checkpoint import make_checkpoint

ONE, TWO = "sk-1234567890abcdef", "sk-fedcba0987654321"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    return path


@pytest.fixture
def service(tmp_path: Path, keys: Path, seed: int) -> Any:
    """Reads the service's file, and with it the keys, as `manta plan` does."""
    make_checkpoint(tmp_path / "model", seed=seed)

    def read(**api: Any) -> Service:
        data = {"name": "one", "model": {"path": str(tmp_path / "model")}, "api": {"keys_file": str(keys), **api}}
        return resolve(spec_from_dict(data), Room((2.0,), own=True))

    return read


def test_a_comment_and_a_blank_line_are_no_keys(keys: Path, service: Any) -> None:
    keys.write_text(f"# the team's\n\n  {ONE}  \n   # old: do not use\n{TWO}\n{ONE}\n")
    assert read_api_keys(keys) == (ONE, TWO)
    assert gateway_settings(service()).gateway.api_keys == (ONE, TWO)


def test_a_pipe_of_keys_is_not_waited_for(tmp_path: Path) -> None:
    """The second gateway would read nothing from it."""
    os.mkfifo(tmp_path / "keys", 0o600)
    with pytest.raises(SpecError, match="keys is a folder, a pipe or a device; make a file, with one API key a line"):
        read_api_keys(tmp_path / "keys")


def test_a_path_that_cannot_even_be_looked_at_is_named(tmp_path: Path) -> None:
    """As in a folder that is closed to whoever serves."""
    with pytest.raises(SpecError, match=r"api.keys_file: .* cannot be read \(File name too long\); make it"):
        read_api_keys(tmp_path / ("k" * 300))


def test_a_byte_order_mark_is_no_part_of_a_key(keys: Path) -> None:
    keys.write_text(f"{ONE}\n", encoding="utf-8-sig")
    assert read_api_keys(keys) == (ONE,)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        ("short\n", "line 1 has 5 characters; allowed: 16 to 512"),
        (f"{ONE}\n{'x' * 513}\n", "line 2 has 513 characters"),
        (f"{ONE} # a comment that is none\n", "line 1 holds a space"),
        ("schlüssel-schlüssel-schlüssel\n", "line 1 holds a space or a character"),
        (f"{ONE[:9]}\x00{ONE[9:]}\n", "line 1 holds a space or a character"),
        (b"\xff\xfe" + ONE.encode("utf-16-le"), "is not text in UTF-8"),
        (b"x" * (MAX_FILE_BYTES + 1), f"has over {MAX_FILE_BYTES} bytes"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(keys: Path, content: str | bytes, what: str) -> None:
    keys.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SpecError) as caught:
        read_api_keys(keys)
    message = str(caught.value)
    assert message.startswith(f"api.keys_file: {keys} {what}")
    assert not any(secret in message for secret in (ONE, ONE[:9], "schl", "xxxxx"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"keys_file: .*absent cannot be read \(No such file or directory\); make it"):
        read_api_keys(tmp_path / "absent")


@pytest.mark.parametrize(
    ("mode", "says"), [(0o600, ""), (0o640, ""), (0o644, "warns"), (0o620, "refuses"), (0o602, "refuses")]
)
def test_who_may_read_and_write_it(keys: Path, caplog: pytest.LogCaptureFixture, mode: int, says: str) -> None:
    keys.write_text(ONE)
    os.chmod(keys, mode)
    with caplog.at_level(logging.WARNING):
        if says == "refuses":
            with pytest.raises(SpecError, match=rf"has mode {mode:04o}: others can add keys to it; run: chmod 600"):
                read_api_keys(keys)
            return
        assert read_api_keys(keys) == (ONE,)
    assert ("can be read by every user of this host (mode 0644)" in caplog.text) == (says == "warns")
    assert ONE not in caplog.text


def test_another_key_in_the_same_file_is_a_change(keys: Path, service: Any) -> None:
    keys.write_text(ONE)
    before = service()
    keys.write_text(TWO)
    after = service()
    (change,) = changes_between(before, after)
    assert (change.field, change.how) == ("api.keys_file", "rolling")
    assert "the keys that were taken out stop being valid" in change.note
    assert "ends its streams" in change.note
    assert before.version != after.version
    assert _of_application(before) != _of_application(after), "Serve is handed the gateways anew"
    assert not any(key in repr((before, after, change)) for key in (ONE, TWO))


def test_the_same_keys_in_another_order_are_no_change(keys: Path, service: Any) -> None:
    keys.write_text(f"{ONE}\n{TWO}\n")
    before = service()
    keys.write_text(f"# turned round\n{TWO}\n{ONE}\n")
    assert changes_between(before, service()) == ()


def test_a_file_of_its_own_is_one_change(keys: Path, service: Any, tmp_path: Path) -> None:
    keys.write_text(ONE)
    other = tmp_path / "other"
    other.write_text(TWO)
    os.chmod(other, 0o600)
    (change,) = changes_between(service(), service(keys_file=str(other)))
    assert (change.field, change.after) == ("api.keys_file", str(other))


def test_a_digest_tells_no_key_and_is_another_for_each_service() -> None:
    given = [((ONE,), "one"), ((ONE,), "two"), ((TWO,), "one"), ((ONE, TWO), "one")]
    assert len({digest_of(keys, service) for keys, service in given}) == len(given)
    assert digest_of((), "one") == ""


def test_a_host_that_still_has_the_old_file_is_told_so(keys: Path, service: Any) -> None:
    """Otherwise the key that leaked would stay valid, and the change be reported as made."""
    keys.write_text(TWO)
    wanted = service()
    check_digest(wanted.spec, wanted.keys_digest)
    keys.write_text(ONE)
    with pytest.raises(SpecError, match="holds other keys on the controller's host than where .*; copy it to the same"):
        check_digest(wanted.spec, wanted.keys_digest)


def test_what_is_stored_holds_no_key(keys: Path, service: Any, ray_store: dict[bytes, bytes]) -> None:
    keys.write_text(f"{ONE}\n{TWO}\n")
    store_service(service(), "good")
    assert ray_store
    assert not any(key.encode() in data for data in ray_store.values() for key in (ONE, TWO))


def test_settings_of_gateways_have_one_version_whatever_their_keys_are_shown_as(keys: Path, service: Any) -> None:
    """What Serve shows of a deployment is no digest of a key that could be tried offline without the salt's cost."""
    from cluster.fingerprint import fingerprint

    keys.write_text(ONE)
    settings = gateway_settings(service())
    other = replace(settings, gateway=replace(settings.gateway, api_keys=(TWO,)))
    assert fingerprint(settings) == fingerprint(other)
