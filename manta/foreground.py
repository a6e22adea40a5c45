"""`manta serve`: start, show progress, say when it is ready, wait for Ctrl-C, stop what was started."""

import json
import shlex
from contextlib import suppress

import typer
from rich.console import Console

from cluster.lifecycle import serve
from cluster.spec import ServiceSpec
from manta.outcome import sigterm_is_ctrl_c
from manta.progress import StartDisplay


def serve_in_foreground(spec: ServiceSpec, address: str | None) -> None:
    """Serves until Ctrl-C or SIGTERM; a KeyboardInterrupt before it is ready passes through.

    Raises:
        ValueError: what it was given cannot be served (a bad checkpoint, a mismatch with what the cluster runs).
        RuntimeError: it did not come up.
    """
    display = StartDisplay(Console(stderr=True))
    with sigterm_is_ctrl_c():
        with display:
            service = serve(spec, address, display.update)
        with service, sigterm_is_ctrl_c():
            typer.echo(ready_message(spec, service.url, display.elapsed_s))
            with suppress(KeyboardInterrupt):
                service.wait()
            typer.echo("Stopping …", err=True)
    typer.echo("Stopped.", err=True)


def ready_message(spec: ServiceSpec, url: str, elapsed_s: float) -> str:
    """What to tell the user once the service answers, with a request to try."""
    name = spec.model.served_name
    body = json.dumps({"model": name, "prompt": "def fibonacci(n):", "max_tokens": 64})
    command = f"curl {shlex.quote(url.rstrip('/') + '/v1/completions')} -H 'Content-Type: application/json'"
    if spec.api.keys_file is not None:
        command += ' -H "Authorization: Bearer $MANTA_API_KEY"'
    return (
        f"\nReady in {elapsed_s:.1f} s: {name} at {url}\n\nTry it:\n\n"
        f"  {command} \\\n    -d {shlex.quote(body)}\n\nCtrl-C stops it."
    )
