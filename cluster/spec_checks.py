"""What no single field of a service file can tell: fields that must agree."""

import ipaddress
from collections.abc import Iterator

from cluster.spec_schema import ServiceSpec
from spec.errors import Problem, show


def problems_in(spec: ServiceSpec) -> Iterator[Problem]:
    """Everything wrong with a specification whose fields are each well-formed."""
    if spec.api.keys_file is None and not is_loopback(spec.api.host):
        yield Problem(
            "api.host",
            f"{show(spec.api.host)} can be reached from other machines, and api.keys_file is not set. "
            "Set api.keys_file to a file with one API key a line, or use 127.0.0.1.",
        )
    given = {name: getattr(spec.tls, name) for name in ("cert_file", "key_file", "ca_file")}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        yield Problem("tls", f"{' and '.join(missing)} missing; give all three files, or none.")
    batch_tokens = spec.attention.max_batch_tokens
    if batch_tokens != "auto" and spec.attention.max_sequences > batch_tokens:
        yield Problem(
            "attention.max_sequences",
            f"{spec.attention.max_sequences} was given, more than attention.max_batch_tokens "
            f"({batch_tokens}), and every running sequence needs a row in each step. "
            "Lower the first or raise the second.",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
