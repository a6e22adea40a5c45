"""What a body costs others: how long other clients wait, and how much memory the gateway, or the service, takes."""

import http.client
import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fuzz.asgi import Answer, check_shape
from tests.fuzz.http_client import BROKEN, CLIENT_TIMEOUT_S, LEFT, Client, Stream
from tests.fuzz.processes import Memory

MAX_STALL_S = 0.1
MAX_MIB = 64.0
PAUSE_S = 0.002  # between two requests of the other client
TRIES = 3  # what each of so many sendings costs counts: other processes of the machine stall too, and buffers grow once
SETTLE_S = 0.05


@dataclass(frozen=True)
class Cost:
    """What one body did.

    Args:
        status: LEFT where its client had no more patience.
        stall_s: The longest that the other client waited for an answer.
        gap_s: The longest that a stream beside it waited for a token.
        mib: What the process that took most took more, at its peak; of several bodies at once, the share of each.
        kept_mib: What all of them hold more afterwards; the same.
    """

    name: str
    path: str
    num_bytes: int
    status: int
    stall_s: float
    mib: float
    took_s: float
    wrong: str = ""
    gap_s: float = 0.0
    kept_mib: float = 0.0

    @property
    def held_up_s(self) -> float:
        """The longest that anybody else waited."""
        return max(self.stall_s, self.gap_s)

    @property
    def is_large(self) -> bool:
        """Whether it took too much memory."""
        return max(self.mib, self.kept_mib) > MAX_MIB

    def too_dear(self, judge_stall: bool) -> bool:
        """Whether it took too much of anything."""
        return self.is_large or (judge_stall and self.held_up_s > MAX_STALL_S)

    def __str__(self) -> str:
        what = f"{self.path}, {self.name} ({self.num_bytes:,} bytes): {'left' if self.status == LEFT else self.status}"
        stream = f", a stream {self.gap_s * 1000:.0f} ms" if self.gap_s else ""
        memory = f"{self.mib:+.0f} MiB, {self.kept_mib:+.0f} kept"
        return f"{what}, others waited {self.stall_s * 1000:.0f} ms{stream}, {memory}, {self.took_s:.2f} s"


class Gauge:
    """Sends bodies to a gateway, or a service, and watches it.

    Args:
        parts: The processes whose memory counts, by their ids, with names for messages.
        stream: An honest stream beside it; None: there is none.
        copies: How often each body is sent at once; each copy may take MAX_MIB.
    """

    def __init__(self, client: Client, parts: Mapping[int, str], stream: Stream | None = None, copies: int = 1) -> None:
        self.post = client.post
        self._address = client.address
        self._parts = parts
        self._memory = Memory(parts)
        self._stream = stream
        self._copies = copies

    def cost(self, name: str, path: str, body: bytes, judge_stall: bool) -> Cost:
        """Sends a body, again if it was too dear, and tells the least that it cost; says what is wrong with it."""
        tries = [self._once(name, path, body)]
        while tries[-1].too_dear(judge_stall) and len(tries) < TRIES:
            tries.append(self._once(name, path, body))
        stall_s, gap_s = min(one.stall_s for one in tries), min(one.gap_s for one in tries)
        mib, kept_mib = min(one.mib for one in tries), min(one.kept_mib for one in tries)
        wrong = [one.wrong for one in tries if one.wrong]
        if judge_stall and stall_s > MAX_STALL_S:
            wrong.append(f"others waited {stall_s * 1000:.0f} ms")
        if judge_stall and gap_s > MAX_STALL_S:
            wrong.append(f"a stream waited {gap_s * 1000:.0f} ms for a token")
        if max(mib, kept_mib) > MAX_MIB:
            wrong.append(f"it took {mib:.0f} MiB of one process, and {kept_mib:.0f} MiB stayed")
        last = tries[-1]
        return Cost(
            name, path, len(body), last.status, stall_s, mib, last.took_s, "; ".join(wrong), gap_s, kept_mib
        )  # fmt: skip

    def _once(self, name: str, path: str, body: bytes) -> Cost:
        before_mib, began_s = self._memory.mark(), time.monotonic()
        with self._other_client() as waits_s, ThreadPoolExecutor(self._copies) as clients:
            answers = list(clients.map(lambda _: self.post(path, body), range(self._copies)))
            took_s = time.monotonic() - began_s
            time.sleep(SETTLE_S)  # what the gateway still does with it afterwards counts too
        grown = self._memory.grown_mib(before_mib)
        kept_mib = (sum(self._memory.now_mib().values()) - sum(before_mib.values())) / self._copies
        gap_s = 0.0 if self._stream is None else self._stream.longest_gap_s(began_s)
        wrong = "; ".join(filter(None, [*map(_wrong, answers), *self._wrong_beside()]))
        stall_s, mib = max(waits_s, default=0.0), max(grown, default=0.0) / self._copies
        return Cost(name, path, len(body), answers[0].status, stall_s, mib, took_s, wrong,
                    gap_s, kept_mib)  # fmt: skip

    def _wrong_beside(self) -> list[str]:
        lines = [f"{self._parts[pid]} (process {pid}) ended" for pid in self._memory.take_ended()]
        if self._stream is not None:
            lines += [f"the stream beside it failed: {words}" for words in self._stream.take_failures()]
        return lines

    @contextmanager
    def _other_client(self):
        over, waits_s = threading.Event(), list[float]()
        thread = threading.Thread(target=self._ask_again_and_again, args=(over, waits_s))
        thread.start()
        try:
            yield waits_s
        finally:
            over.set()
            thread.join(CLIENT_TIMEOUT_S)

    def _ask_again_and_again(self, over: threading.Event, waits_s: list[float]) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=CLIENT_TIMEOUT_S)
        try:
            while not over.is_set():
                began_s = time.perf_counter()
                connection.request("GET", "/health")
                answer = connection.getresponse()
                answer.read()
                served = answer.status == 200
                waits_s.append(time.perf_counter() - began_s if served else CLIENT_TIMEOUT_S)
                over.wait(PAUSE_S)
        except (OSError, http.client.HTTPException):
            waits_s.append(CLIENT_TIMEOUT_S)  # nobody answers: the gateway is gone
        finally:
            connection.close()


def _wrong(answer: Answer) -> str:
    if answer.status == BROKEN:
        return f"the connection broke: {answer.body.decode()}"
    try:
        check_shape(answer)
    except (AssertionError, KeyError, TypeError, json.JSONDecodeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
