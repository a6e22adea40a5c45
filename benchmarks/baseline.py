"""The in-process baseline: transformers' own generate, a whole batch at a time, on two threads.

Legend: B sequences, L tokens of a prompt. torch and transformers are imported only here, and only when asked for: the
load generator itself starts without them.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import RequestRecord, RunRecord
from benchmarks.workload import Prompt, Workload, WorkloadError

NUM_THREADS = 2


class TransformersBaseline:
    """A checkpoint under transformers, measured like a server: one batch of `concurrency` prompts after another.

    No HTTP, no scheduling and no arrivals: what the checkpoint takes in plain PyTorch. All sequences of a batch share
    its times.
    """

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        """Load `folder` in its own dtype. Raises WorkloadError where it cannot be loaded."""
        if not (folder / "config.json").is_file():
            raise WorkloadError(f"no config.json in {folder}; give --transformers the checkpoint's folder")
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(NUM_THREADS)
        try:
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise WorkloadError(f"transformers cannot load {folder}: {error}") from error
        self.model.generation_config.eos_token_id = None  # ignore_eos
        self.model.generation_config.pad_token_id = 0  # never used: prompts of one batch have one length

    def run(self, workload: Workload, on_request: Callable[[], None]) -> RunRecord:
        """Generate for the whole workload; `on_request` is called per prompt. Prompts must be ids of one length."""
        records: list[RequestRecord] = []
        began_s = time.perf_counter()
        size = workload.concurrency
        for start in range(0, len(workload.prompts), size):
            batch = workload.prompts[start : start + size]
            records += self._generate(batch, workload.output_len)
            for _ in batch:
                on_request()
        return RunRecord(tuple(records), time.perf_counter() - began_s)

    def _generate(self, prompts: Sequence[Prompt], output_len: int) -> list[RequestRecord]:
        import torch
        from transformers import StoppingCriteriaList

        times_s: list[float] = []

        def note_time(ids_BL: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            times_s.append(time.perf_counter())
            return torch.zeros(ids_BL.shape[0], dtype=torch.bool)

        ids_BL = torch.tensor(prompts)
        sent_s = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                ids_BL,
                attention_mask=torch.ones_like(ids_BL),
                do_sample=False,
                max_new_tokens=output_len,
                stopping_criteria=StoppingCriteriaList([note_time]),
            )
        return [RequestRecord(sent_s, tuple(times_s), len(times_s)) for _ in prompts]
