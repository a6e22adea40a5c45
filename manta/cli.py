"""The `manta` command. Thin: it reads arguments, calls `cluster.lifecycle` or `manta.local`, and prints.

Nothing heavy is imported until a command runs, so that `manta --help` answers at once.
"""

import json
import secrets
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from manta.outcome import plain_errors, signals_are_ctrl_c

app = typer.Typer(
    name="manta",
    help="Serve Mixture-of-Experts models on Ray: every expert is a service of its own.\n\n"
    "Start here: manta serve demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MAX_TIMEOUT_S = 31_536_000  # a year; clocks overflow at some multiple of it
MAX_UINT32 = 2**32 - 1  # what a count on its way to an engine may be

Dtype = Literal["auto", "float32", "bfloat16"]
Address = Annotated[
    str | None,
    typer.Option(
        help="The Ray cluster to use, such as auto or HOST:6379. Without it: a Ray of Manta's own, on this machine."
    ),
]
Name = Annotated[
    str | None, typer.Argument(help="The service's name. Without it: the one that runs.", show_default=False)
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, max=MAX_TIMEOUT_S, help="Seconds to wait for the service, at most.")
]
DtypeOption = Annotated[
    Dtype | None, typer.Option(help="What to compute in. auto: the checkpoint's own; float32 for float16.")
]


@app.command()
def serve(
    model_or_yaml: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_YAML",
            help="A Hugging Face Mixtral directory, demo for the bundled model, or a service file (.yaml).",
            show_default=False,
        ),
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port to listen on; 8000 unless the file says.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on; 127.0.0.1 unless the file says.")] = None,
    model_name: Annotated[
        str | None, typer.Option(help="The name clients use; the directory's unless the file says.")
    ] = None,
    dtype: DtypeOption = None,
    address: Address = None,
) -> None:
    """Serve a model over an OpenAI-compatible API until Ctrl-C."""
    with plain_errors():
        from manta.target import spec_of

        given = {"api.port": port, "api.host": host, "model.name": model_name, "model.dtype": dtype}
        overrides = {field: value for field, value in given.items() if value is not None}
        spec = spec_of(model_or_yaml, overrides, check_files=address is None)

        from manta.foreground import serve_in_foreground  # imports Ray, which a mistyped path need not wait for

        serve_in_foreground(spec, address)


ServiceFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A service file (.yaml) of a service that runs.", show_default=False)
]


@app.command()
def plan(
    file: ServiceFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    address: Address = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what `manta apply` would change, and how: live, rolling, or refused."""
    with plain_errors():
        from manta.change import show_plan

        show_plan(file, as_json, address, timeout)


@app.command()
def apply(
    file: ServiceFile,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    rotate_keys: Annotated[
        bool, typer.Option("--rotate-keys", help="Change the key of the data plane, too; no request fails by it.")
    ] = False,
    address: Address = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.1,
            max=MAX_TIMEOUT_S,
            help="Seconds to wait for the change, at most; without it: as long as the file's limits let it take. The "
            "change goes on after that.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a running service what its file says, without failing a request; rolled back if it cannot be done."""
    with plain_errors():
        from manta.change import apply_file

        apply_file(file, yes, address, timeout, rotate_keys)


@app.command()
def status(
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    address: Address = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what runs: each part, its replicas and their health."""
    with plain_errors():
        from cluster.lifecycle import status as read_status
        from manta.status_view import print_status

        found = read_status(name, address, timeout)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            print_status(found)


@app.command()
def down(name: Name = None, address: Address = None, timeout: Timeout = 60.0) -> None:
    """Stop one service, and nothing else that runs on the cluster."""
    with plain_errors():
        from cluster.lifecycle import down as stop

        stop(name, address, timeout)
        typer.echo(f"Stopped {name}." if name else "Stopped.")


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(help="A Hugging Face Mixtral directory, or demo for the bundled model.", show_default=False),
    ],
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; - reads it from standard input.", show_default=False)
    ],
    max_tokens: Annotated[int, typer.Option(min=1, max=MAX_UINT32, help="The most tokens to generate.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token; higher is more varied.")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this total probability.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=MAX_UINT32, help="Draw from this many likeliest tokens.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Repeats a draw. Without it: a new one each time.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="One of the model's tasks, if it routes by task.", show_default=False)
    ] = None,
    dtype: DtypeOption = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What to compute on.")] = "cpu",
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
) -> None:
    """Continue a text in this one process, without Ray or a server."""
    if top_p == 0:
        raise typer.BadParameter("0 leaves no token to draw; give more than 0, at most 1.", param_hint="--top-p")
    with plain_errors(), signals_are_ctrl_c():
        from manta.standard_input import standard_input
        from manta.target import spec_of
        from protos.generation_pb2 import Sampling

        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=secrets.randbits(64) if seed is None else seed,
        )
        spec = spec_of(model, {"model.dtype": dtype or "auto"}, check_files=True, allow_yaml=False)
        text = _text(standard_input if prompt == "-" else lambda: prompt, "PROMPT")
        named = _text(lambda: task or "", "--task")

        from manta.dtype_note import dtype_note
        from manta.local import LocalService, check_device

        for notice in (check_device(device), dtype_note(spec.model)):
            if notice:
                typer.echo(notice, err=True)
        pieces = LocalService(spec.model.directory, spec.model.dtype, device).generate(text, sampling, named)
        typer.echo(text if echo else "", nl=False)
        for piece in pieces:
            typer.echo(piece, nl=False)  # flushes
        typer.echo()


def _text(read: Callable[[], str], what: str) -> str:
    """What a user gave.

    Raises:
        BadParameter: It is no text: a tokenizer, or a protobuf, would say so in words of its own.
    """
    try:
        text = read()
        text.encode()
    except UnicodeError as error:
        words = f"it is not UTF-8 text ({error}); convert it, with iconv say."
        raise typer.BadParameter(words, param_hint=what) from error
    return text


@app.command()
def train(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A training file (.yaml).", show_default=False)],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all; what the file says, without it.")] = None,
    address: Address = None,
) -> None:
    """Train a model; the same command goes on where an earlier one stopped."""
    with plain_errors():
        from training.spec import load_training

        spec = load_training(file, {} if steps is None else {"schedule.steps": steps})

        from manta.train import train_in_foreground  # imports Ray and torch

        train_in_foreground(spec, address)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder: STORAGE/NAME of its training file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The directory to write; new, or empty.", show_default=False)],
    step: Annotated[int | None, typer.Option(help="Which checkpoint; without it: the newest.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="What the weights are stored in.")] = "bfloat16",
) -> None:
    """Write a trained model as a Hugging Face checkpoint, to serve it."""
    with plain_errors():
        from manta.train import export_run

        typer.echo(export_run(run, out, step, dtype))


@app.command()
def extract(
    model: Annotated[
        Path, typer.Argument(help="A Hugging Face directory whose model routes by task.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write; new, or empty.", show_default=False)],
    task: Annotated[str, typer.Option(help="One of the model's tasks.", show_default=False)],
    dtype: Annotated[
        Dtype, typer.Option(help="What the weights are stored in. auto: the model's own; float32 for float16.")
    ] = "auto",
) -> None:
    """Write a plain, smaller Mixtral with the experts of one task only."""
    with plain_errors():
        from training.extract import extract as extract_task

        before, after = extract_task(model, out, task, dtype)
        typer.echo(
            f"Wrote {after.num_experts} of {before.num_experts} experts in each layer to {out}. "
            f"Serve it: manta serve {shlex.quote(str(out))}"
        )


@app.command()
def version() -> None:
    """Print Manta's version."""
    from manta import __version__

    typer.echo(f"manta {__version__}")


def main() -> None:
    """The entry point of the `manta` command."""
    app()
