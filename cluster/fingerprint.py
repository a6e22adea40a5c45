"""Names for settings, by which parts that run are told from parts that are wanted. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

NUM_DIGITS = 12


def fingerprint(settings: object) -> str:
    """Returns a name for settings: the same for equal ones, in every process and under every Manta that has them.

    A field that has its default value is left out. So a later Manta may add fields, with defaults that mean what was
    done before, and gives what runs the same names. A dataclass's field that its repr does not show is left out too: it
    is secret.

    Args:
        settings: Plain data: dataclasses and pydantic models of numbers, texts, paths, sequences and mappings.

    Raises:
        TypeError: They are no plain data.
    """
    text = json.dumps(_plain(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:NUM_DIGITS]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value  # 600 in a file, 600.0 once it was stored
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseModel):
        return _changed((name, getattr(value, name), _model_default(value, name)) for name in type(value).model_fields)
    if is_dataclass(value):
        return _changed((one.name, getattr(value, one.name), _default(one)) for one in fields(value) if one.repr)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, Set | bytes):
        return [_plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} has no fingerprint: it is no plain data")


def _changed(found: Iterable[tuple[str, Any, Any]]) -> dict[str, Any]:
    return {name: _plain(value) for name, value, default in found if default is MISSING or value != default}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _model_default(model: BaseModel, name: str) -> Any:
    field = type(model).model_fields[name]
    return MISSING if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
