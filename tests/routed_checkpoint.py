"""Random checkpoints that route by sentence or by task, and transformers' model, its gates replaced, as their oracle.

The oracle knows nothing of chunks or of several sequences: it takes one whole sequence at a time.
T positions, D model dim, E experts, S tasks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralForCausalLM

from checkpoint.experts import ExpertNaming
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint

WEIGHTS = "model.safetensors"


def make_sentence_checkpoint(directory: Path, positions: int, **options: object) -> MixtralForCausalLM:
    """A checkpoint whose sequences are decided by their first `positions` rows, and the model that does so."""
    model = make_checkpoint(directory, **options)
    _tell(directory, {"level": "sentence", "positions": positions})
    layers: Any = model.model.layers
    for layer in layers:
        gate = layer.mlp.gate
        gate.forward = _seeing_means(gate.forward, positions)
    return model


def make_task_checkpoint(
    directory: Path, tasks: tuple[str, ...], with_token_gates: bool = False, **options: object
) -> "TaskModel":
    """A checkpoint whose experts each of `tasks` fixes, and the models that do so, one for each task."""
    model = make_checkpoint(directory, **options)
    num_experts = model.config.num_local_experts
    generator = torch.Generator().manual_seed(int(str(options["seed"])))
    tables = [torch.randn(len(tasks), num_experts, generator=generator) for _ in model.model.layers]
    _tell(directory, {"level": "task", "tasks": list(tasks)})
    naming = ExpertNaming.FUSED if options.get("fused_names") else ExpertNaming.PER_EXPERT
    tensors = load_file(directory / WEIGHTS)
    for layer, table_SE in enumerate(tables):
        block = f"model.layers.{layer}.{naming.value}"
        tensors[f"{block}.task_gate.weight"] = table_SE
        if not with_token_gates:
            del tensors[f"{block}.gate.weight"]
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})
    return TaskModel(model, tasks, tables)


class TaskModel:
    """What transformers says if a task's row of each table are every row's logits."""

    def __init__(self, model: MixtralForCausalLM, tasks: tuple[str, ...], tables: list[Tensor]) -> None:
        self.tables = tables
        self._model = model
        self._tasks = tasks

    @property
    def layers(self) -> Any:
        """The layers of transformers' model."""
        return self._model.model.layers

    def double(self) -> None:
        """Computes in float64 from now on."""
        self._model.double()
        self.tables = [table_SE.double() for table_SE in self.tables]

    def oracle(self, task: str) -> Oracle:
        """The oracle of one task; until the next call of this."""
        number = self._tasks.index(task)
        for layer, table_SE in zip(self.layers, self.tables, strict=True):
            layer.mlp.gate.forward = _fixed(table_SE[number], int(self._model.config.num_experts_per_tok))
        return Oracle(self._model)


def _tell(directory: Path, routing: dict[str, object]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manta_routing": routing}))


def _seeing_means(gate: Callable[[Tensor], object], positions: int) -> Callable[[Tensor], object]:
    def forward(hidden: Tensor) -> object:
        rows_TD = hidden.reshape(-1, hidden.shape[-1])
        means = [rows_TD[: min(t + 1, positions)].double().mean(0) for t in range(len(rows_TD))]
        return gate(torch.stack(means).to(hidden.dtype))

    return forward


def _fixed(logits_E: Tensor, top_k: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    best = sorted(range(len(logits_E)), key=lambda expert: -logits_E[expert].item())[:top_k]
    shares_K = logits_E[best].exp() / logits_E[best].exp().sum()

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_rows = hidden.reshape(-1, hidden.shape[-1]).shape[0]
        weights_TK = shares_K.to(hidden.dtype).expand(num_rows, -1)
        return logits_E.expand(num_rows, -1), weights_TK, torch.tensor(best).expand(num_rows, -1)

    return forward
