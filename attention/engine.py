"""The engine of an attention node: one step computes one token of every decoding sequence and some prefill chunks.

T rows, D model dim, V vocabulary.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attention.admission import SubmitError, make_sequence
from attention.batch import build_batch, sampled_rows
from attention.cache import RollingCache
from attention.dense import DenseModel
from attention.levels import StepExperts
from attention.sampling import Sampler, prompt_logprobs
from attention.scheduler import Scheduler, SchedulerLimits, StepPlan
from attention.sequence import Sequence
from protos.generation_pb2 import FAILED, LENGTH, STOP, GenerationFailure, SequenceOutput, Submit
from transport.base import DegradedRows
from transport.errors import CallError


@dataclass(slots=True)
class StepResult:
    """What a step gave: most sequences one token and nothing else (two parallel columns), the others a message."""

    sequences: list[Sequence] = field(default_factory=list[Sequence])
    token_ids: list[int] = field(default_factory=list[int])
    messages: list[tuple[Sequence, SequenceOutput]] = field(default_factory=list[tuple[Sequence, SequenceOutput]])


class _Lanes:
    """What a lane holds: cache blocks, and the sampler's state once its first token is drawn."""

    def __init__(self, cache: RollingCache, sampler: Sampler) -> None:
        self._cache = cache
        self._sampler = sampler
        self._sampling: set[int] = set()

    @property
    def num_free_blocks(self) -> int:
        return self._cache.num_free_blocks

    def num_held(self, lane: int) -> int:
        return self._cache.num_held(lane)

    def grow(self, lane: int, num_positions: int) -> bool:
        return self._cache.grow(lane, num_positions)

    def release(self, lane: int) -> None:
        self._cache.release(lane)
        if lane in self._sampling:
            self._sampling.remove(lane)
            self._sampler.remove(lane)

    def start_sampling(self, sequence: Sequence) -> None:
        """Gives the sampler what it needs to draw a sequence's next token."""
        if sequence.lane not in self._sampling:
            self._sampling.add(sequence.lane)
            prompt = sequence.ids[: sequence.num_prompt]
            self._sampler.add(sequence.lane, sequence.sampling, prompt, sequence.output_ids)


class Engine:
    """Owns the sequences of one node. Not thread-safe: one thread calls everything.

    Args:
        max_context: Positions of a sequence, prompt and output together.
        experts: How a step's rows reach their layers' experts (`step_experts`).
    """

    def __init__(
        self,
        model: DenseModel,
        cache: RollingCache,
        limits: SchedulerLimits,
        max_context: int,
        experts: StepExperts,
    ) -> None:
        self._model = model
        self._cache = cache
        self._max_context = max_context
        self._experts = experts
        config = model.config
        self._sampler = Sampler(config.vocab_size, limits.max_sequences, config.eos_token_ids, model.device)
        self._lanes = _Lanes(cache, self._sampler)
        self.scheduler = Scheduler(limits, self._lanes, cache.shape.num_blocks_for)
        self._sequences: dict[Hashable, Sequence] = {}
        self._cancelled: list[Sequence] = []
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do: sequences to advance, or cancelled ones to free."""
        return bool(self._sequences or self._cancelled)

    def submit(self, key: Hashable, submit: Submit) -> None:
        """Queues a sequence under `key`, which is free again once its last message has been returned.

        Raises:
            SubmitError: It is malformed, too long, or the queue is full.
        """
        if key in self._sequences:
            raise SubmitError("invalid_request", "a sequence with this id is running already; choose another id")
        sequence = make_sequence(key, submit, self._model.config, self._max_context, time.monotonic())
        if self.scheduler.queue_full and not submit.resumed:  # one that resumes was accepted before
            num_waiting = len(self.scheduler.waiting)
            raise SubmitError("queue_full", f"{num_waiting} sequences wait already (attention.max_queued)")
        self._sequences[key] = sequence
        self.scheduler.add(sequence)

    def cancel(self, key: Hashable) -> None:
        """Ends a sequence without a message; what it held is free before the next step. An unknown key is ignored."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            # Perhaps in the middle of a step (while it waits for the experts): taken out between steps.
            sequence.cancelled = True
            self._cancelled.append(sequence)

    def remove_cancelled(self) -> None:
        """Frees what cancelled sequences held."""
        for sequence in self._cancelled:
            self.scheduler.remove(sequence)
        self._cancelled.clear()

    @torch.inference_mode()
    def step(self) -> StepResult:
        """Computes one step. A failure of the experts ends the sequences of the step, each with a message."""
        self.remove_cancelled()
        plan = self.scheduler.next_step()
        result = StepResult()
        if not plan:
            return result
        self._note_admitted(plan)
        try:
            rows_TD = self._forward(plan)
        except CallError as error:
            for sequence in plan.sequences:
                self._fail(sequence, _public_code(error), error.message, result)
            return result
        self.num_steps += 1
        self._score_prompts(plan, rows_TD)
        self._advance(plan)
        self._sample(plan, rows_TD, result)
        return result

    def check_integrity(self) -> None:
        """Asserts that no block and no lane is lost or held twice."""
        self.remove_cancelled()
        self._cache.check_integrity()
        self.scheduler.check_integrity()

    def _note_admitted(self, plan: StepPlan) -> None:
        for sequence in plan.sequences:
            if sequence.admitted_s is None:
                sequence.admitted_s = time.monotonic()

    def _forward(self, plan: StepPlan) -> Tensor:
        """Runs the layers. Returns the last hidden rows [T, D]."""
        forward = self._model.forward(build_batch(plan, self._cache), self._cache)
        experts = self._experts(plan)
        layer, rows_TD = next(forward)
        while True:
            answer = experts(layer, rows_TD)
            if isinstance(answer, DegradedRows):
                if max(answer.missing_experts) >= self._model.config.num_experts:
                    raise CallError("internal", f"a router names expert {max(answer.missing_experts)} as missing")
                for sequence in plan.sequences:
                    sequence.note_missing(answer.missing_experts)
                answer = answer.rows_TD
            try:
                layer, rows_TD = forward.send(answer)
            except StopIteration as done:
                return done.value

    def _advance(self, plan: StepPlan) -> None:
        for sequence in plan.decode:
            sequence.num_cached += 1
        for chunk in plan.prefill:
            chunk.sequence.num_cached += chunk.count

    def _score_prompts(self, plan: StepPlan, rows_TD: Tensor) -> None:
        """Log-probabilities of prompt tokens, for those who asked (echo)."""
        start = len(plan.decode)
        for chunk in plan.prefill:
            sequence = chunk.sequence
            if sequence.sampling.prompt_logprobs and not sequence.announced:
                first = sequence.num_cached
                following = sequence.ids[first + 1 : min(first + chunk.count + 1, sequence.num_prompt)]
                if first == 0:
                    sequence.prompt_logprobs.clear()
                if following:
                    logits_TV = self._model.logits(rows_TD[start : start + len(following)])
                    scores = prompt_logprobs(logits_TV, following, _num_prompt_alternatives(sequence))
                    sequence.prompt_logprobs.extend(scores)
            start += chunk.count

    def _sample(self, plan: StepPlan, rows_TD: Tensor, result: StepResult) -> None:
        """Draws the next token of each sequence whose tokens are all computed."""
        rows, sequences = sampled_rows(plan)
        drawn: list[Sequence] = []
        drawn_rows: list[int] = []
        for row, sequence in zip(rows, sequences, strict=True):
            if sequence.num_output >= sequence.max_output:
                self._message(sequence, SequenceOutput(finish_reason=LENGTH), result)
            else:
                self._lanes.start_sampling(sequence)
                drawn.append(sequence)
                drawn_rows.append(row)
        if not drawn:
            return
        if len(drawn_rows) < rows_TD.shape[0]:
            rows_TD = rows_TD[torch.tensor(drawn_rows, device=rows_TD.device)]
        sampled = self._sampler.sample(self._model.logits(rows_TD), [sequence.lane for sequence in drawn])
        for row, (sequence, token_id) in enumerate(zip(drawn, sampled.token_ids, strict=True)):
            if sequence.cancelled:
                continue
            if row in sampled.failed:
                failure = sampled.failed[row]
                self._fail(sequence, failure.code, failure.message, result)
                continue
            logprob = sampled.logprobs.get(row) if sampled.logprobs else None
            sequence.ids.append(token_id)
            ends = token_id in sequence.stop_ids or sequence.num_output >= sequence.max_output
            if sequence.announced and sequence.missing_told and not ends and logprob is None:
                result.sequences.append(sequence)
                result.token_ids.append(token_id)
                continue
            output = SequenceOutput(token_ids=[token_id], logprobs=[] if logprob is None else [logprob])
            if ends:
                _end(output, sequence, token_id)
            self._message(sequence, output, result)

    def _message(self, sequence: Sequence, output: SequenceOutput, result: StepResult) -> None:
        """Adds a message, completed with what has not been told yet; forgets sequences that ended."""
        if not sequence.announced:
            sequence.announced = True
            output.prompt_logprobs.extend(sequence.prompt_logprobs)
            output.queue_s = (sequence.admitted_s or sequence.arrival_s) - sequence.arrival_s
        if not sequence.missing_told:
            sequence.missing_told = True
            output.missing_experts.extend(sorted(sequence.missing_experts))
        if not sequence.cancelled:
            result.messages.append((sequence, output))
        if output.finish_reason and not sequence.cancelled:
            del self._sequences[sequence.key]
            self.scheduler.remove(sequence)

    def _fail(self, sequence: Sequence, code: str, message: str, result: StepResult) -> None:
        failure = GenerationFailure(code=code, message=message)
        self._message(sequence, SequenceOutput(finish_reason=FAILED, failure=failure), result)


def _public_code(error: CallError) -> str:
    """Returns the code that a client sees: whatever went wrong between our own processes is not the request's fault."""
    return error.code if error.code == "expert_unavailable" else "internal"


def _num_prompt_alternatives(sequence: Sequence) -> int:
    sampling = sequence.sampling
    return sampling.prompt_alternatives if sampling.HasField("prompt_alternatives") else sampling.logprobs


def _end(output: SequenceOutput, sequence: Sequence, token_id: int) -> None:
    """Says why a sequence ends with `token_id`."""
    if token_id in sequence.stop_ids:
        output.finish_reason = STOP
        output.stop_token_id = token_id
    else:
        output.finish_reason = LENGTH
