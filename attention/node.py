"""The attention node's data-plane side: gateways' sessions on one side, routers on the other, the engine between.

One thread owns all of it: it turns the loop between engine steps, and while it waits for the experts.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from attention.admission import SubmitError
from attention.cache import RollingCache
from attention.dense import DenseModel
from attention.engine import Engine, StepResult
from attention.levels import step_experts
from attention.routers import ROUTERS, RouterClient
from attention.sizing import NodeSettings
from protos.dispatch_pb2 import Header
from protos.generation_pb2 import FAILED, GenerationFailure, Leaving, SequenceOutput, StepOutput
from transport.address import Address
from transport.busy import BusyClock
from transport.credentials import Credentials
from transport.frames import MAX_HEADER_BYTES, Frame
from transport.link import ANSWER_TIMEOUT_S
from transport.loop import Loop
from transport.pulse import Pulse
from transport.replicas import Replicas
from transport.server import Session, SocketServer
from transport.socket import SocketPeer
from transport.table import Newest, RoutingTable

logger = logging.getLogger(__name__)

# A gateway that has stopped reading is cut off before its unread output fills the memory.
MAX_OUTBOX_BYTES = 64 << 20
# Pairs of a token and its log-probability in one message, 9 bytes each: half of what a header may have. The other half
# is for what a step gives otherwise (cluster/frame_checks.py).
MAX_PAIRS_PER_FRAME = MAX_HEADER_BYTES // 2 // 16

# A sequence is known by its session and the id that its gateway gave it.
Key = tuple[Session, int]


class NodeServer:
    """Serves sequences to gateways.

    Args:
        tcp_host: The interface for gateways on other hosts; None: this host only.
        recovery_timeout_s: `limits.recovery_timeout_s`.
        request_timeout_s: `limits.request_timeout_s`.
        answer_timeout_s: How long a router may be silent though it is asked (`limits.answer_timeout_s`). How long it
            may take for an answer is bounded by `request_timeout_s` alone: it may be waiting for an expert itself.
    """

    def __init__(
        self,
        model: DenseModel,
        cache: RollingCache,
        settings: NodeSettings,
        credentials: Credentials,
        tcp_host: str | None,
        recovery_timeout_s: float,
        request_timeout_s: float,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._loop = Loop()
        self._cache = cache
        self._routers = Replicas(
            self._connector(credentials, answer_timeout_s), self._loop.call_later, recovery_timeout_s
        )
        client = RouterClient(self._routers, self._loop.run_once, request_timeout_s)
        experts = step_experts(client, model.config, settings.max_sequences, model.device)
        self._engine = Engine(model, cache, settings.limits(), settings.max_context, experts)
        self._server = SocketServer(self._loop, "node", credentials, tcp_host, self._frame, self._lost)
        self._sequences: dict[Session, set[int]] = {}
        self._tables = Newest()
        self._ready = threading.Event()
        self._busy = BusyClock()
        self._pulse = Pulse(self._loop, self._busy)

    @property
    def address(self) -> Address:
        return self._server.address

    def update(self, table: RoutingTable) -> None:
        """Takes over a routing table that is newer than all before; callable from any thread."""
        self._loop.post(lambda: self._update(table))

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until a router is connected; callable from any thread."""
        return self._ready.wait(timeout_s)

    def lives(self) -> bool:
        """Returns whether the thread that runs it does not hang; callable from any other thread, may take a second."""
        return self._pulse.beats()

    def stop(self) -> None:
        """Ends `run`; callable from any thread."""
        self._loop.stop()

    def snapshot(self) -> Mapping[str, object]:
        """Returns figures for status and metrics; callable from any thread."""
        scheduler = self._engine.scheduler
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "cache_used_tokens": self._cache.used_tokens,
            "cache_total_tokens": self._cache.total_tokens,
            "preemptions_total": scheduler.num_preemptions,
            "steps_total": self._engine.num_steps,
            "utilization": self.load()["utilization"],
        }

    def load(self) -> dict[str, float]:
        """Returns what autoscaling goes by (`cluster.scaling.Load`); callable from any thread.

        A node is as busy as its thread computes, or as its lanes are taken, whichever is more; what waits for a lane
        is queued.
        """
        scheduler = self._engine.scheduler
        num_lanes = scheduler.limits.max_sequences
        taken = len(scheduler.running) / num_lanes
        utilization = max(self._busy.utilization(), round(taken, 3))
        return {"utilization": utilization, "queued": len(scheduler.waiting) / num_lanes}

    def run(self) -> None:
        """Serves until `stop`; to be called in the thread that owns everything."""
        self._busy.follow_thread()
        try:
            while not self._loop.stopped:
                self._loop.run_once(0.0 if self._engine.has_work else None)
                if self._engine.has_work:
                    self._emit(self._engine.step())
            self._say_leaving()
        finally:
            self._server.close()
            self._routers.close()

    def _connector(self, credentials: Credentials, answer_timeout_s: float) -> Callable[[Address], SocketPeer]:
        return lambda address: SocketPeer(
            self._loop, address, credentials, "node", self._router_changed, answer_timeout_s
        )

    def _router_changed(self) -> None:
        if self._routers.complete:
            self._ready.set()
        self._routers.retry_waiting()

    def _update(self, table: RoutingTable) -> None:
        if self._tables.is_newer(table):
            self._routers.update({ROUTERS: table.routers})

    def _frame(self, session: Session, frame: Frame) -> None:
        header = frame.header
        kind = header.WhichOneof("kind")
        if kind == "submit":
            self._submit(session, header)
        elif kind == "cancel":
            for sequence_id in header.cancel.sequence_ids:
                self._sequences.get(session, set()).discard(sequence_id)
                self._engine.cancel((session, sequence_id))
        else:
            logger.warning("a %s sent a message of kind %s; a node takes submit and cancel", session.role, kind)
            session.close()
            self._lost(session)

    def _submit(self, session: Session, header: Header) -> None:
        submit = header.submit
        try:
            self._engine.submit((session, submit.sequence_id), submit)
        except SubmitError as error:
            failure = GenerationFailure(code=error.code, message=error.message)
            output = SequenceOutput(sequence_id=submit.sequence_id, finish_reason=FAILED, failure=failure)
            session.send(Header(step_output=StepOutput(outputs=[output])))
        else:
            self._sequences.setdefault(session, set()).add(submit.sequence_id)

    def _lost(self, session: Session) -> None:
        for sequence_id in self._sequences.pop(session, ()):
            self._engine.cancel((session, sequence_id))

    def _say_leaving(self) -> None:
        """Tells the gateways to ask others, and that nothing is wrong with the sequences that are given up."""
        for session in self._server.admitted:
            session.send(Header(leaving=Leaving()))

    def _emit(self, result: StepResult) -> None:
        """Sends each gateway everything that the step gave to it, in one message."""
        outputs: dict[Session, StepOutput] = {}
        num_pairs: Counter[Session] = Counter()
        for sequence, token_id in zip(result.sequences, result.token_ids, strict=True):
            session, sequence_id = _key(sequence.key)
            output = outputs.get(session)
            if output is None:
                output = outputs[session] = StepOutput()
            output.sequence_ids.append(sequence_id)
            output.token_ids.append(token_id)
        for sequence, message in result.messages:
            session, message.sequence_id = _key(sequence.key)
            output = outputs.setdefault(session, StepOutput())
            num_pairs[session] += _send_scores(session, message, MAX_PAIRS_PER_FRAME - num_pairs[session])
            output.outputs.append(message)
            if message.finish_reason:
                self._sequences[session].discard(message.sequence_id)
        for session, output in outputs.items():
            session.send(Header(step_output=output))
            if session.outbox_bytes > MAX_OUTBOX_BYTES:
                logger.warning("a gateway does not read its output; its connection is closed")
                session.close()
                self._lost(session)


def _send_scores(session: Session, message: SequenceOutput, room: int) -> int:
    """Sends a prompt's log-probabilities ahead, in frames of their own, if there is no room for them with the others.

    Together they could be over what a frame may carry.

    Args:
        room: How many pairs of a token and its log-probability may stay in the message.

    Returns:
        How many did.
    """
    scores = list(message.prompt_logprobs)
    num_pairs = sum(1 + len(score.alternative_ids) for score in scores)
    if num_pairs <= room:
        return num_pairs
    message.ClearField("prompt_logprobs")
    count = max(1, MAX_PAIRS_PER_FRAME * len(scores) // num_pairs)  # nearly all have as many alternatives
    for start in range(0, len(scores), count):
        output = SequenceOutput(sequence_id=message.sequence_id, prompt_logprobs=scores[start : start + count])
        session.send(Header(step_output=StepOutput(outputs=[output])))
    return 0


def _key(key: object) -> Key:
    assert isinstance(key, tuple)
    return key  # pyright: ignore[reportUnknownVariableType]
