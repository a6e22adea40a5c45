"""What a body costs others: how long another client of the gateway waits, and how much memory the gateway takes."""

import http.client
import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.asgi import Answer, check_shape

MAX_STALL_S = 0.1
MAX_MIB = 64.0
PAUSE_S = 0.002  # between two requests of the other client
TRIES = 3  # a stall counts if each of so many sendings makes one: other processes of the machine stall too
CLIENT_TIMEOUT_S = 120.0
SETTLE_S = 0.05


@dataclass(frozen=True)
class Cost:
    """What one body did. `stall_s` is the longest that the other client waited for an answer."""

    name: str
    path: str
    num_bytes: int
    status: int
    stall_s: float
    mib: float
    took_s: float
    wrong: str = ""

    def __str__(self) -> str:
        what = f"{self.path}, {self.name} ({self.num_bytes:,} bytes): {self.status}"
        return f"{what}, others waited {self.stall_s * 1000:.0f} ms, {self.mib:+.0f} MiB, {self.took_s:.2f} s"


class Gauge:
    """Sends bodies to a gateway and watches it. `pids` are the processes whose memory counts."""

    def __init__(self, host: str, port: int, pids: Iterable[int]) -> None:
        self._address = (host, port)
        self._pids = tuple(pids)

    def cost(self, name: str, path: str, body: bytes, judge_stall: bool) -> Cost:
        """Sends a body, again if others had to wait, and tells the least that it cost; says what is wrong with it."""
        tries = [self._once(name, path, body)]
        while judge_stall and tries[-1].stall_s > MAX_STALL_S and len(tries) < TRIES:
            tries.append(self._once(name, path, body))
        least = min(tries, key=lambda one: one.stall_s)
        worst_mib = min(one.mib for one in tries)
        wrong = [one.wrong for one in tries if one.wrong]
        if judge_stall and least.stall_s > MAX_STALL_S:
            wrong.append(f"others waited {least.stall_s * 1000:.0f} ms")
        if worst_mib > MAX_MIB:
            wrong.append(f"it took {worst_mib:.0f} MiB")
        return Cost(name, path, len(body), least.status, least.stall_s, worst_mib, least.took_s, "; ".join(wrong))

    def post(self, path: str, body: bytes) -> Answer:
        """Sends a body and takes the whole answer; status 0 where the connection broke."""
        connection = http.client.HTTPConnection(*self._address, timeout=CLIENT_TIMEOUT_S)
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, str(error).encode())
        finally:
            connection.close()

    def _once(self, name: str, path: str, body: bytes) -> Cost:
        before_mib = self._forget_peaks()
        with self._other_client() as waits_s:
            began_s = time.perf_counter()
            answer = self.post(path, body)
            took_s = time.perf_counter() - began_s
            time.sleep(SETTLE_S)  # what the gateway still does with it afterwards counts too
        mib = self._peaks_mib() - before_mib
        return Cost(name, path, len(body), answer.status, max(waits_s, default=0.0), mib, took_s, _wrong(answer))

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
                connection.getresponse().read()
                waits_s.append(time.perf_counter() - began_s)
                over.wait(PAUSE_S)
        except (OSError, http.client.HTTPException):
            waits_s.append(CLIENT_TIMEOUT_S)  # nobody answers: the gateway is gone
        finally:
            connection.close()

    def _forget_peaks(self) -> float:
        page_mib = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page_mib for pid in self._pids)

    def _peaks_mib(self) -> float:
        found = (Path(f"/proc/{pid}/status").read_text() for pid in self._pids)
        return sum(int(text.split("VmHWM:")[1].split()[0]) / 1024 for text in found)


def _wrong(answer: Answer) -> str:
    if not answer.status:
        return f"the connection broke: {answer.body.decode()}"
    try:
        check_shape(answer)
    except (AssertionError, KeyError, TypeError, json.JSONDecodeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
