"""What transformers answers to the same prompts: the reference that owes Manta nothing.

B prompts, L tokens of a prompt, V vocabulary.
"""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.load import Answer, Phase, Prompts
from benchmarks.load import RequestRecord
from model.config import read_config


class NoReference(ValueError):
    """transformers cannot say what a checkpoint answers; tells why."""


def transformers_answers(directory: Path, prompts: Prompts, output_len: int) -> Phase:
    """Greedy answers of float32, of `output_len` tokens each, with the margins of their tokens.

    Raises:
        NoReference: transformers does not load the checkpoint, or knows nothing of its routing.
        ModelError: It cannot be read.
    """
    level = read_config(directory).routing.level
    if level != "token":
        raise NoReference(f"it routes by {level}, and transformers knows nothing of that")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise NoReference(f"transformers cannot load it: {error}") from error
    model.generation_config.eos_token_id = None  # as ignore_eos
    model.generation_config.pad_token_id = 0  # never used: all prompts have one length
    began_s, answers = time.perf_counter(), list[Answer]()
    for client, of_client in enumerate(prompts):
        for index, (token_ids, margins) in enumerate(_generate(model, of_client, output_len)):
            record = RequestRecord(began_s, (), len(token_ids))
            answers.append(Answer((client, index), record, time.perf_counter(), token_ids, margins))
    return Phase(tuple(answers), began_s, time.perf_counter(), 0.0)


def _generate(
    model: Any, prompts: tuple[list[int], ...], output_len: int
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The tokens of each prompt, and by how much each was better than the second best."""
    ids_BL = torch.tensor(prompts)
    with torch.inference_mode():
        said = model.generate(
            ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            do_sample=False,
            max_new_tokens=output_len,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = [logits_BV.topk(2, dim=-1).values for logits_BV in said.logits]
    margins = torch.stack([two_B2[:, 0] - two_B2[:, 1] for two_B2 in best], dim=1).tolist()
    tokens = said.sequences[:, ids_BL.shape[1] :].tolist()
    return [(tuple(ids), tuple(gaps)) for ids, gaps in zip(tokens, margins, strict=True)]
