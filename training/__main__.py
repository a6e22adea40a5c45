"""A training file as a Ray job, one line a step: `RAY_AUTH_MODE=token ray job submit -- python -m training FILE.yaml`.

On a machine of one's own, `manta train FILE.yaml` does the same, starts Ray and shows more.
"""

import sys
from functools import partial
from typing import Any

import ray

from spec.outcome import BAD_INPUT, INTERRUPTED, status_of, traceback_wanted, words_of
from training.running import Watch, run_training
from training.spec import load_training
from transport.job import OwnJob
from transport.strangers import refuse_open


def main(arguments: list[str]) -> int:
    """Returns the exit status (spec/outcome.py). With MANTA_TRACEBACK=1 in the environment, errors pass through."""
    if len(arguments) != 1:
        print("usage: python -m training FILE.yaml", file=sys.stderr)
        return BAD_INPUT
    try:
        spec = load_training(arguments[0])
        ray.init(log_to_driver=False, job_config=OwnJob())
        refuse_open(ray.get_runtime_context().gcs_address)
        say = partial(print, flush=True)
        finished = run_training(spec, Watch(on_record=print_record, on_waiting=say, on_notice=say))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if traceback_wanted():
            raise
        print(f"error: {words_of(error)}", file=sys.stderr)
        return status_of(error)
    print(f"done: {finished.checkpoint.directory}")
    return 0


def print_record(record: dict[str, Any]) -> None:
    """One step, in one line."""
    held_out = "" if record["held_out_loss"] is None else f", held out {record['held_out_loss']:.4f}"
    print(
        f"step {record['step']}: loss {record['loss']:.4f}{held_out}, {record['tokens_per_s']:.0f} tokens/s, "
        f"gradient {record['gradient_norm']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
