"""What is compared: a training step of Manta's on one or two ranks, and one of transformers' on as many threads.

Each runs in processes of its own and returns the seconds of its timed steps. All have the same sizes, random batches of
the same shape, the same losses (cross-entropy and load balancing), AdamW and clipping; parameters are float32.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.config import MixtralConfig
from training.initial import RandomWeights
from training.losses import LossSettings
from training.mesh import MeshShape, lone_mesh, make_mesh
from training.model import Batch, TrainModel
from training.optimizer import make_optimizer
from training.spec_schema import OptimizerSpec
from training.step import StepSettings, train_step

SETTINGS = OptimizerSpec()
BALANCE = 0.02


@dataclass(frozen=True)
class Sizes:
    """The model, and a step's batch: `batch` sequences over all ranks."""

    hidden_size: int = 256
    ffn_size: int = 320
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    num_experts: int = 8
    top_k: int = 2
    vocab_size: int = 4096
    sequence_length: int = 256
    batch: int = 8
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.sequence_length

    def config(self) -> MixtralConfig:
        """As Manta has it."""
        return MixtralConfig(
            hidden_size=self.hidden_size,
            ffn_size=self.ffn_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            num_experts=self.num_experts,
            top_k=self.top_k,
            vocab_size=self.vocab_size,
            window=None,
            max_context=self.sequence_length,
            rope_theta=10000.0,
            norm_eps=1e-5,
            tie_embeddings=True,
            bos_token_id=0,
            eos_token_ids=(1,),
            dtype="float32",
        )


@dataclass(frozen=True)
class Variant:
    """One way to compute a step.

    Args:
        shape: Ranks of Manta's, one thread each; None: transformers.
        num_threads: Of transformers.
    """

    name: str
    shape: MeshShape | None
    num_threads: int = 1


VARIANTS = (
    Variant("1x1", MeshShape(1, 1)),
    Variant("transformers, 1 thread", None, 1),
    Variant("1x2", MeshShape(1, 2)),
    Variant("2x1", MeshShape(2, 1)),
    Variant("transformers, 2 threads", None, 2),
)
PAIRS = (("1x1", "transformers, 1 thread"), ("1x2", "transformers, 2 threads"), ("2x1", "transformers, 2 threads"))


def measure(variant: Variant, sizes: Sizes, warm_up: int, steps: int, meeting: str, timeout_s: float) -> list[float]:
    """Returns the seconds of each timed step, of the slowest rank.

    Raises:
        RuntimeError: A process ended before it was done.
    """
    world = 1 if variant.shape is None else variant.shape.world
    context = mp.get_context("spawn")
    results = context.Queue()
    args = (variant, sizes, warm_up, steps, meeting, results)
    processes = [context.Process(target=_run, args=(rank, *args), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        taken = [results.get(timeout=timeout_s) for _ in processes]
    except Exception as error:
        raise RuntimeError(f"{variant.name} was not measured within {timeout_s:g} s") from error
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [max(ranks) for ranks in zip(*taken, strict=True)]


def _run(rank: int, variant: Variant, sizes: Sizes, warm_up: int, steps: int, meeting: str, results: Any) -> None:
    torch.manual_seed(rank)
    torch.set_num_threads(variant.num_threads)
    step = _transformers_step(sizes) if variant.shape is None else _manta_step(rank, variant.shape, sizes, meeting)
    for number in range(warm_up):
        step(number)
    taken: list[float] = []
    for number in range(warm_up, warm_up + steps):
        started_s = time.perf_counter()
        step(number)
        taken.append(time.perf_counter() - started_s)
    results.put(taken)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _manta_step(rank: int, shape: MeshShape, sizes: Sizes, meeting: str) -> Callable[[int], object]:
    mesh = lone_mesh()
    if shape.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=shape.world)
        mesh = make_mesh(shape, torch.device("cpu"))
    config = sizes.config()
    model = TrainModel(config, RandomWeights(config, 0), mesh, getattr(torch, sizes.dtype))
    optimizer = make_optimizer(model.parameters(), SETTINGS)
    settings = StepSettings(LossSettings(balance=BALANCE), clip_norm=SETTINGS.clip_norm)
    positions_BL = torch.arange(sizes.sequence_length).repeat(sizes.batch // shape.world, 1)

    def step(number: int) -> object:
        ids = torch.randint(sizes.vocab_size, (sizes.batch // shape.world, sizes.sequence_length + 1))
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions_BL, positions_BL[:, 0])
        return train_step(model, optimizer, batch, number, positions_BL.numel(), settings, mesh)

    return step


def _transformers_step(sizes: Sizes) -> Callable[[int], object]:
    from transformers import MixtralConfig as TheirConfig
    from transformers import MixtralForCausalLM

    config: Any = TheirConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.ffn_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        num_local_experts=sizes.num_experts,
        num_experts_per_tok=sizes.top_k,
        sliding_window=None,
        max_position_embeddings=sizes.sequence_length,
        tie_word_embeddings=True,
        router_aux_loss_coef=BALANCE,
        output_router_logits=True,
    )
    model: Any = MixtralForCausalLM(config)  # its defaults: sdpa, grouped products of the experts
    model.to(getattr(torch, sizes.dtype)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS.peak_lr, betas=(SETTINGS.beta1, SETTINGS.beta2), fused=True
    )

    def step(number: int) -> object:
        ids = torch.randint(sizes.vocab_size, (sizes.batch, sizes.sequence_length))
        optimizer.zero_grad()
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip_norm or 1.0)
        optimizer.step()
        return output.loss.item()

    return step
