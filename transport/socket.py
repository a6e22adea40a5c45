"""Socket transport: `SocketPeer` makes calls over a `Link`; `RequestServer` answers them by a `Service`."""

import time
from collections.abc import Callable

from torch import Tensor

from protos.dispatch_pb2 import CallFailure, Header, Progress
from transport.address import Address
from transport.base import OnReply, Request, Service
from transport.credentials import Credentials
from transport.errors import CallError, PeerLost, TooLargeError
from transport.frames import EMPTY_BODY, Frame
from transport.link import ANSWER_TIMEOUT_S, Link
from transport.loop import Loop
from transport.membership import Role
from transport.server import Session, SocketServer
from transport.tensors import answer_header, degraded_header, read_answer, read_call, rows_to_body
from transport.turns import MAX_BYTES, MAX_ROWS, Turns

# A caller that has left so many bytes of its answers untaken is not read from until it takes them.
MAX_UNTAKEN_BYTES = 64 << 20
# So often a service that computes for long tells its callers that it gets on.
PROGRESS_S = 1.0


class SocketPeer:
    """Calls to one address. A lost connection fails the calls under way with PeerLost and is made anew.

    Args:
        on_change: Called whenever `ready` may have changed.
        answer_timeout_s: `limits.answer_timeout_s`: a connection that is silent for so long is taken for lost.
        calls_expire: Whether one with a call that old, and no word of progress, is too; else callers bound their calls
            themselves.
    """

    def __init__(
        self,
        loop: Loop,
        address: Address,
        credentials: Credentials,
        role: Role,
        on_change: Callable[[], None] = lambda: None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        calls_expire: bool = False,
    ) -> None:
        # Bounded by what calls: a node has one call under way, and a router one for each shard and node's call.
        self._calls: dict[int, tuple[OnReply, int, bool]] = {}
        self._next_id = 1
        self._num_told = 0  # how often the other side said that the oldest call has only to wait
        self._on_change = on_change
        self.rows_in_flight = 0
        oldest = self._oldest if calls_expire else lambda: None
        self._link = Link(
            loop, address, credentials, role, self._answer, on_change, self._down, answer_timeout_s, oldest
        )

    @property
    def address(self) -> Address:
        return self._link.address

    @property
    def ready(self) -> bool:
        return self._link.up

    @property
    def last_error(self) -> str:
        """Why the connection was lost last, or could not be made."""
        return self._link.last_error

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        if not self._link.up:
            on_reply(PeerLost(f"{self.address} is not connected: {self._link.last_error}", with_rows=False))
            return
        call_id = self._next_id
        self._next_id = call_id + 1
        num_rows = rows_TD.size(0)
        try:
            sent = self._link.send(header, rows_to_body(rows_TD), call_id)
        except TooLargeError as error:
            on_reply(CallError("internal", str(error)))
            return
        self.rows_in_flight += num_rows
        self._calls[call_id] = on_reply, num_rows, sent

    def close(self) -> None:
        self._link.close()
        self._fail_calls("the peer was removed", by_itself=False)

    def _answer(self, frame: Frame) -> None:
        call_id, encoded, body = frame
        call = self._calls.get(call_id)
        if call is None:
            if not call_id:
                self._note_progress(frame.header)
            return
        answer = read_answer(encoded, body)  # a header that does not parse ends the connection and fails this call too
        del self._calls[call_id]
        on_reply, num_rows, _ = call
        self.rows_in_flight -= num_rows
        on_reply(answer)

    def _note_progress(self, header: Header) -> None:
        oldest = next(iter(self._calls), 0)
        if header.WhichOneof("kind") == "progress" and oldest >= header.progress.first_call_id:
            self._num_told += 1

    def _oldest(self) -> tuple[int, int] | None:
        """Names the call that has waited longest for its answer, since something was heard of it last."""
        return (next(iter(self._calls)), self._num_told) if self._calls else None

    def _down(self, reason: str) -> None:
        self._fail_calls(reason)
        self._on_change()

    def _fail_calls(self, reason: str, by_itself: bool = True) -> None:
        calls, self._calls = self._calls, {}
        self.rows_in_flight = 0
        for on_reply, _, sent in calls.values():
            on_reply(PeerLost(f"{self.address}: {reason}", with_rows=by_itself and sent))


class _SessionResponder:
    """Answers one call over the connection it came from; a connection lost meanwhile drops the answer."""

    __slots__ = ("call_id", "session")

    def __init__(self, session: Session, call_id: int) -> None:
        self.session = session
        self.call_id = call_id

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None:
        header = degraded_header(rows_TD, missing_experts) if missing_experts else answer_header(rows_TD)
        try:
            self.session.send(header, rows_to_body(rows_TD), self.call_id)
        except TooLargeError as error:
            self.fail(CallError("internal", str(error)))

    def fail(self, error: CallError) -> None:
        failure = CallFailure(code=error.code, message=error.message)
        self.session.send(Header(failure=failure), EMPTY_BODY, self.call_id)


class RequestServer:
    """A `SocketServer` for a `Service`: collects what has arrived in one turn of the loop and hands it on together.

    What is too much at once (`transport/turns.py`) is handed on in as many turns of the loop as it needs, the senders
    in rotation. Meanwhile who has something waiting is not read from, and nor is who leaves many answers untaken: so
    what waits here is what one turn of the loop has read from each, and what calls more than it takes fills its own
    socket.

    A service that computes for long calls `tell_progress` now and then, so that callers do not give it up meanwhile.
    """

    def __init__(self, loop: Loop, role: str, credentials: Credentials, tcp_host: str | None, service: Service) -> None:
        self._loop = loop
        self._service = service
        self._arrived: list[Request] = []
        self._senders: list[Session] = []  # of `arrived`, one each
        self._turns = Turns()
        self._paused: set[Session] = set()
        self._last_read: dict[Session, int] = {}  # the id of each one's latest call
        self._in_service: list[Request] = []
        self._tell_at_s = 0.0
        self._scheduled = False
        self._server = SocketServer(loop, role, credentials, tcp_host, self._collect, self._forget, MAX_UNTAKEN_BYTES)

    @property
    def address(self) -> Address:
        return self._server.address

    @property
    def num_callers(self) -> int:
        """Authenticated connections; readable from any thread."""
        return self._server.num_admitted

    @property
    def num_unproven(self) -> int:
        """Connections that have not proved themselves."""
        return self._server.num_unproven

    def close(self) -> None:
        """Stops listening and ends every connection."""
        self._server.close()

    def tell_progress(self) -> bool:
        """Tells callers which of their calls have only to wait, if the service has computed for PROGRESS_S without it.

        To be called by the service, while it computes. What it has not read meanwhile has to wait too.

        Returns:
            Whether they were told.
        """
        now_s = time.monotonic()
        if now_s < self._tell_at_s:
            return False
        self._tell_at_s = now_s + PROGRESS_S
        first_ids = {session: last_id + 1 for session, last_id in self._last_read.items()}
        waiting = [self._turns.oldest(sender) for sender in self._turns.senders]
        for request in (*waiting, *reversed(self._in_service)):  # of each caller the oldest comes last
            if request is not None and isinstance(request.responder, _SessionResponder):
                first_ids[request.responder.session] = request.responder.call_id
        for session in self._server.admitted:
            session.send(Header(progress=Progress(first_call_id=first_ids.get(session, 0))))
        return True

    def _collect(self, session: Session, frame: Frame) -> None:
        call_id, encoded, body = frame
        responder = _SessionResponder(session, call_id)
        try:
            header, rows_TD = read_call(encoded, body)
        except CallError as error:
            responder.fail(error)
            return
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._serve)
        self._arrived.append(Request(header, rows_TD, responder))
        self._senders.append(session)
        self._last_read[session] = call_id

    def _serve(self) -> None:
        self._scheduled = False
        arrived, senders = self._arrived, self._senders
        self._arrived, self._senders = [], []
        if self._paused or (len(arrived) > 1 and _exceeds_a_turn(arrived)):
            for sender, request in zip(senders, arrived, strict=True):
                self._turns.add(sender, request)
            arrived = self._turns.take()
            self._pause_waiting()
        self._in_service, self._tell_at_s = arrived, time.monotonic() + PROGRESS_S
        self._service(arrived)
        self._in_service = []

    def _forget(self, session: Session) -> None:
        """Drops what a lost caller has waiting: it asks again, here or elsewhere."""
        kept = [place for place, sender in enumerate(self._senders) if sender is not session]
        self._arrived = [self._arrived[place] for place in kept]
        self._senders = [self._senders[place] for place in kept]
        self._turns.drop(session)
        self._last_read.pop(session, None)
        self._paused.discard(session)

    def _pause_waiting(self) -> None:
        """Reads from nobody who has something waiting, and comes back in the next turn if there is anybody."""
        waiting = {sender for sender in self._turns.senders if isinstance(sender, Session)}
        for session in self._paused - waiting:
            session.resume()
        for session in waiting - self._paused:
            session.pause()
        self._paused = waiting
        if self._turns:
            self._scheduled = True
            self._loop.post(self._serve)


def _exceeds_a_turn(requests: list[Request]) -> bool:
    num_rows = sum([request.rows_TD.size(0) for request in requests])
    return num_rows > MAX_ROWS or sum([request.rows_TD.nbytes for request in requests]) > MAX_BYTES
