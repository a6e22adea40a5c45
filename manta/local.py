"""The Ray-free path: engine, router and experts of one model in this process, through `transport/local`.

The oracle of the distributed runs, the debug mode, and what `manta generate` uses.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attention.dense import DenseModel
from attention.engine import Engine
from attention.levels import step_experts
from attention.routers import ROUTERS, RouterClient
from attention.sizing import CacheTooSmall, NodeSettings, make_cache
from attention.warming import rehearse
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights
from experts.service import ExpertService
from experts.shard import load_shard
from model.config import read_config
from model.dtypes import torch_dtype
from protos.generation_pb2 import FAILED, Sampling, SequenceOutput, Submit
from router.core import Router
from router.levels import load_gates
from serving.end_tokens import with_end
from serving.tokenizer import NoTokenizer, TextCodec
from transport.address import Address
from transport.errors import CallError
from transport.local import LocalPeer
from transport.loop import Timer
from transport.replicas import Replicas
from transport.table import ShardEntry


@dataclass(frozen=True)
class LocalSettings:
    """How a local model is cut and run; the defaults suit one prompt at a time.

    Args:
        dtype: `auto` (the checkpoint's), `float32` or `bfloat16`.
        window: `auto` (the checkpoint's), None (full attention) or a number of positions.
        per_actor: Experts in one shard; None: all.
        slices: Slices of every expert's FFN columns.
    """

    dtype: str = "auto"
    window: int | str | None = "auto"
    max_context: int | None = None
    cache_tokens: int | None = None
    prefill_chunk: int | None = None
    max_batch_tokens: int = 512
    max_sequences: int = 16
    max_queued: int = 256
    per_actor: int | None = None
    slices: int = 1
    device: str = "cpu"


class LocalModel:
    """A whole model in one process: `submit`, then `step` until everything has ended.

    Raises:
        ModelError: The checkpoint cannot be read; names the file, the tensor or field, and the remedy.
        ValueError: The settings do not fit the model.
    """

    def __init__(
        self,
        directory: Path,
        settings: LocalSettings | None = None,
        on_progress: Callable[[str, float], None] = lambda what, fraction: None,
    ) -> None:
        settings = settings or LocalSettings()
        config = with_end(read_config(directory), directory)
        window = config.window if settings.window == "auto" else settings.window
        assert not isinstance(window, str)
        self.config = replace(config, window=window)
        self._settings = settings
        self._device = torch.device(settings.device)
        self._dtype = torch_dtype(config.dtype if settings.dtype == "auto" else settings.dtype)
        self._on_progress = on_progress
        router = self._make_router(directory)
        self.engine = self._make_engine(directory, router)
        self._keys = itertools.count()
        self._outputs: dict[int, deque[SequenceOutput]] = {}  # not read yet, of each sequence that `generate` runs

    def submit(self, submit: Submit) -> int:
        """Queues a sequence and returns its key."""
        key = next(self._keys)
        self.engine.submit(key, submit)
        return key

    def step(self) -> list[tuple[int, SequenceOutput]]:
        """Computes one engine step; returns what each sequence got."""
        result = self.engine.step()
        plain = [
            (sequence, SequenceOutput(token_ids=[token_id]))
            for sequence, token_id in zip(result.sequences, result.token_ids, strict=True)
        ]
        return [(_key(sequence.key), output) for sequence, output in plain + result.messages]

    def generate(self, submit: Submit) -> Generator[SequenceOutput, None, None]:
        """Yields one sequence's outputs as they come; several may be read in turns, and then run together.

        Closed early, it gives back what the sequence held.

        Not to be mixed with `step`, which returns everybody's outputs.

        Raises:
            CallError: The sequence failed.
        """
        wanted = self.submit(submit)
        outputs = self._outputs[wanted] = deque[SequenceOutput]()
        try:
            while True:
                while not outputs:
                    self._step_for_readers()
                output = outputs.popleft()
                if output.finish_reason == FAILED:
                    raise CallError(output.failure.code, output.failure.message)
                yield output
                if output.finish_reason:
                    return
        finally:
            del self._outputs[wanted]
            self.engine.cancel(wanted)

    def _step_for_readers(self) -> None:
        for key, output in self.step():
            if key in self._outputs:
                self._outputs[key].append(output)

    def _make_router(self, directory: Path) -> Router:
        per_actor = self._settings.per_actor or self.config.num_experts
        services: dict[Address, ExpertService] = {}
        entries: list[ShardEntry] = []
        starts = range(0, self.config.num_experts, per_actor)
        cuts = [(start, index) for start in starts for index in range(self._settings.slices)]
        for number, (start, index) in enumerate(cuts):
            expert_ids = tuple(range(start, min(start + per_actor, self.config.num_experts)))
            address = Address("local", f"shard-{number}", "", 0)
            shard = load_shard(
                directory, self.config, expert_ids, index, self._settings.slices, self._dtype, self._device,
                lambda fraction, done=number: self._on_progress("experts", (done + fraction) / len(cuts)),
            )  # fmt: skip
            services[address] = ExpertService(shard, self._device)
            entries.append(ShardEntry(expert_ids, index, self._settings.slices, (address,)))
        gates = load_gates(directory, self.config, self._dtype, self._device)
        replicas = Replicas(lambda address: LocalPeer(services[address].serve), _no_timer, 0.0)
        router = Router(gates, replicas)
        router.update(tuple(entries))
        return router

    def _make_engine(self, directory: Path, router: Router) -> Engine:
        settings, config = self._settings, self.config
        node = NodeSettings(
            window=config.window,
            max_context=min(settings.max_context or config.max_context, config.max_context),
            cache_tokens=settings.cache_tokens,
            prefill_chunk=settings.prefill_chunk,
            max_batch_tokens=settings.max_batch_tokens,
            max_sequences=settings.max_sequences,
            max_queued=settings.max_queued,
        )
        weights = read_attention_weights(CheckpointReader(directory), config, self._dtype)
        self._on_progress("attention", 1.0)
        routers = Replicas(lambda address: LocalPeer(router.serve), _no_timer, 0.0)
        routers.update({ROUTERS: (Address("local", "router", "", 0),)})
        client = RouterClient(routers, lambda timeout_s: None, timeout_s=0.0)
        model = DenseModel(config, weights, self._device)
        if self._device.type == "cuda":
            rehearse(model, node, self._dtype)
        cache = make_cache(node, config, self._dtype, self._device)
        experts = step_experts(client, config, settings.max_sequences, self._device)
        return Engine(model, cache, node.limits(), node.max_context, experts)


class LocalService:
    """Text in, text out, in this process.

    Args:
        dtype: `auto` (the checkpoint's), `float32` or `bfloat16`.
        device: `cpu` or `cuda`.

    Raises:
        ModelError: config.json cannot be used.
        ValueError: There is no tokenizer that can be read.
    """

    def __init__(self, directory: Path, dtype: str = "auto", device: str = "cpu") -> None:
        self._config = read_config(directory)  # first: where there is no model, no tokenizer is missed
        self._codec = TextCodec.load(directory)
        if not self._codec.has_tokenizer:  # said before the weights are read
            raise NoTokenizer(f"{directory} has no tokenizer, which text needs; add the model's tokenizer.json")
        self._directory = directory
        self._dtype = dtype
        self._device = device
        self._loaded: tuple[int, LocalModel] | None = None  # positions of a sequence, and the model with room for them

    def generate(self, prompt: str, sampling: Sampling, task: str = "") -> Iterator[str]:
        """Returns the continuation of `prompt`, piece by piece.

        The weights are read for the first one; the cache holds the positions that are asked for, not the model's whole
        context, which may be more than the memory holds.

        Args:
            task: One of the model's tasks, if it routes by task.

        Raises:
            ModelError: The checkpoint cannot be read.
            ValueError: The memory has no room for so many positions.
            CallError: It could not be generated; also while it is read.
            SubmitError: The prompt is empty or too long, or the task none of the model's; when it is read.
        """
        prompt_ids = asyncio.run(self._codec.encode(prompt))
        limit = self._config.max_context
        asked = len(prompt_ids) + sampling.max_tokens if sampling.HasField("max_tokens") else limit
        return self._pieces(self._model(max(1, min(asked, limit))), prompt_ids, sampling, task)

    def _model(self, num_positions: int) -> LocalModel:
        """The model with a cache for one sequence of so many positions."""
        if self._loaded is None or self._loaded[0] < num_positions:
            settings = LocalSettings(dtype=self._dtype, device=self._device, max_context=num_positions, max_sequences=1)
            try:
                self._loaded = num_positions, LocalModel(self._directory, settings)
            except CacheTooSmall as error:
                raise ValueError(
                    f"prompt and output make {error.needed} positions, and the memory has room for the cache of "
                    f"{error.held}; shorten the prompt, or ask for fewer tokens (--max-tokens)"
                ) from error
        return self._loaded[1]

    def _pieces(self, model: LocalModel, prompt_ids: list[int], sampling: Sampling, task: str) -> Iterator[str]:
        detokenizer = self._codec.detokenizer(continues=True)
        for output in model.generate(Submit(prompt_ids=prompt_ids, sampling=sampling, task=task)):
            ends = output.HasField("stop_token_id")
            yield detokenizer.push(list(output.token_ids)[: -1 if ends else None])
        yield detokenizer.finish()


def check_device(device: str) -> str | None:
    """Returns what to say of a GPU that is not used; None if there is none, or it is.

    Raises:
        ValueError: There is no such device.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ValueError("--device: cuda was given; torch finds no CUDA device here. Use cpu, or install a CUDA build")
    unused = found and device == "cpu"
    return "This host has a CUDA device, and this computes on CPUs; --device cuda uses it." if unused else None


def _no_timer(delay_s: float, callback: Callable[[], None]) -> Timer:
    """Local peers are always ready: nothing ever waits."""
    raise AssertionError("a local peer was not ready")


def _key(key: object) -> int:
    assert isinstance(key, int)
    return key
