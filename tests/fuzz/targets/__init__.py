"""What is fuzzed with bytes: each module here has `one(data)`, which raises only when something is wrong.

A target reads its input however it likes (see `material.py`), catches the errors that the code under it documents, and
asserts what must hold. `WORDS`, if a target has it, are what the fuzzer puts together instead of guessing letters.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

# Name -> the modules (and all below them) whose branches steer the fuzzer.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "frames": ("transport.frames",),
    "handshakes": ("transport.handshake", "transport.credentials", "transport.frames"),
    "sealed": ("transport.sealing", "transport.frames"),
    "calls": ("transport.tensors", "experts", "router.plan"),
    "submits": ("attention",),
    "stops": ("serving.stopping",),
    "detokenizers": ("serving.detokenizer", "serving.pieces", "serving.tokenizer"),
    "weights": ("checkpoint",),
    "runs": (
        "training.progress",
        "training.manifest",
        "training.plain_files",
        "training.tensor_files",
        "training.export",
        "training.metrics",
        "training.tokens",
        "checkpoint.header",
    ),
    "configs": (
        "model.config",
        "model.config_fields",
        "model.routing",
        "serving.tokenizer_files",
        "serving.chat_template",
    ),
    "service_files": ("spec", "cluster.spec", "cluster.spec_checks", "yaml"),
    "training_files": ("spec", "training.spec", "training.spec_checks", "training.spec_fields", "yaml"),
    "requests": ("serving",),
}

One = Callable[[bytes], None]


def load(name: str) -> Any:
    """The module of a target (or a module by its whole name); imports what it tests."""
    return import_module(name if "." in name else f"tests.fuzz.targets.{name}")


def steering(name: str) -> list[str]:
    """The modules whose branches steer the fuzzer."""
    return list(TARGETS.get(name, (name,)))


def words_of(module: Any) -> tuple[bytes, ...]:
    """The target's dictionary."""
    return tuple(getattr(module, "WORDS", ()))
