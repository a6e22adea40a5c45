"""`manta serve`: start, show progress, say when it is ready, wait for Ctrl-C, stop what was started."""

import json
import shlex
from contextlib import suppress
from typing import Any

import typer
from rich.console import Console

from cluster.lifecycle import serve
from cluster.spec import ModelSpec, ServiceSpec
from manta.dtype_note import dtype_note
from manta.outcome import say_last, signals_are_ctrl_c
from manta.progress import StartDisplay
from model.config import read_config
from model.errors import ModelError
from serving.end_tokens import with_end
from serving.tokenizer_files import has_tokenizer_files


def serve_in_foreground(spec: ServiceSpec, address: str | None) -> None:
    """Serves until Ctrl-C, SIGTERM or SIGHUP; a KeyboardInterrupt before it is ready passes through.

    Raises:
        ValueError: what it was given cannot be served (a bad checkpoint, a mismatch with what the cluster runs).
        RuntimeError: it did not come up.
    """
    display = StartDisplay(Console(stderr=True))
    with signals_are_ctrl_c():
        with display:
            service = serve(spec, address, display.update, display.say)
        with service, signals_are_ctrl_c():
            typer.echo(ready_message(spec, service.url, display.elapsed_s))
            with suppress(KeyboardInterrupt):
                service.wait()
            say_last("Stopping …")
    say_last("Stopped.")


def ready_message(spec: ServiceSpec, url: str, elapsed_s: float) -> str:
    """What to tell the user once the service answers, with a request to try."""
    name = spec.model.served_name
    body = json.dumps(_request_to_try(spec.model))
    command = f"curl {shlex.quote(url.rstrip('/') + '/v1/completions')} -H 'Content-Type: application/json'"
    if spec.api.keys_file is not None:
        command += ' -H "Authorization: Bearer $MANTA_API_KEY"'
    return (
        f"\nReady in {elapsed_s:.1f} s: {name} at {url}\n{_notes(spec.model)}\nTry it:\n\n"
        f"  {command} \\\n    -d {shlex.quote(body)}\n\nCtrl-C stops it."
    )


def _notes(model: ModelSpec) -> str:
    """What the checkpoint leaves open, and how it was decided, a line each."""
    notes: list[str] = []
    with suppress(ModelError):
        if note := dtype_note(model):
            notes.append(note)
        if not with_end(read_config(model.directory), model.directory).eos_token_ids:
            notes.append(
                "No file of the model names the token that ends a text: texts end at max_tokens or at stop strings. "
                "If there is one, add its id to generation_config.json as eos_token_id."
            )
    return "".join(f"\nNote: {note}\n" for note in notes)


def _request_to_try(model: ModelSpec) -> dict[str, Any]:
    """A completion that the served model can answer, whatever its checkpoint lacks or asks for."""
    request: dict[str, Any] = {"model": model.served_name, "prompt": "def fibonacci(n):", "max_tokens": 64}
    if not has_tokenizer_files(model.directory):
        request |= {"prompt": [1, 2, 3], "return_token_ids": True}
    with suppress(ModelError):  # taken away since it was served: no reason to fail now
        if tasks := read_config(model.directory).routing.tasks:
            request["task"] = tasks[0]
    return request
