"""What no single field can tell: fields that must agree, and fields that this version does not honour."""

import ipaddress
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from cluster.spec_errors import Problem, show
from cluster.spec_fields import NotYet
from cluster.spec_schema import Section, ServiceSpec


def problems_in(spec: ServiceSpec) -> Iterator[Problem]:
    """Everything wrong with a specification whose fields are each well-formed."""
    yield from _not_honoured(spec, "")
    if spec.api.keys_file is None and not is_loopback(spec.api.host):
        yield Problem(
            "api.host",
            f"{show(spec.api.host)} can be reached from other machines, and api.keys_file is not set. "
            "Set api.keys_file to a file with one API key a line, or use 127.0.0.1.",
        )
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


def _not_honoured(section: Section, path: str) -> Iterator[Problem]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        here = f"{path}.{name}" if path else name
        advice = advice_of(field)
        if advice is not None and value != field.get_default(call_default_factory=True):
            yield Problem(here, f"{show(value)} was given, which is not honoured yet in this version: {advice}.")
        elif isinstance(value, Section):
            yield from _not_honoured(value, here)
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Section):
                    yield from _not_honoured(item, f"{here}.{key}")


def advice_of(field: FieldInfo) -> str | None:
    """What to do instead of a field that is not honoured yet; None for a field that is."""
    return next((mark.advice for mark in field.metadata if isinstance(mark, NotYet)), None)
