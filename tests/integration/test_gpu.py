"""The same model on a CUDA device and on the CPU, one process each; skipped where there is no device."""

from pathlib import Path

import pytest
import torch

from manta.local import LocalModel, LocalSettings
from protos.generation_pb2 import Sampling
from tests.local_driver import Wish, run
from tests.random_checkpoint import make_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_cuda_device_gives_the_cpu_s_tokens(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path, window=16, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, 256, (length,), generator=generator).tolist() for length in (3, 40, 75)]
    wishes = [Wish(prompt, Sampling(max_tokens=24, ignore_eos=True, logprobs=1)) for prompt in prompts]
    on_cpu = run(LocalModel(tmp_path, LocalSettings(dtype="float32", slices=2)), wishes)
    on_gpu = run(LocalModel(tmp_path, LocalSettings(dtype="float32", slices=2, device="cuda")), wishes)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert gpu.tokens == cpu.tokens, f"seed {seed}"
        differences = [abs(a.logprob - b.logprob) for a, b in zip(cpu.scores, gpu.scores, strict=True)]
        assert max(differences) < 1e-3, f"seed {seed}"
