"""A controller that does not understand what is stored of its service: it changes nothing, and says why."""

import asyncio
import logging
import os
import time
from typing import Any

import ray

from cluster.application import SERVE_ANSWERS_S, wanted_by_serve
from cluster.causes import cause_of
from cluster.fleet import expert_actors, kill_experts
from cluster.messages import pack_news
from cluster.placement import release_all
from cluster.plain import MANTA, FormatError
from cluster.secret import forget_data_plane_key
from cluster.stored import forget_service, store_beat

logger = logging.getLogger(__name__)

TICK_S = 1.0
ALONE_S = 600.0  # without a word of any member, before Serve is asked whether it still has the application


class Refusal:
    """Stands where `cluster.control.Control` would: members go on with the routing table that they have.

    It lives on, since one that ended would be started again at once, by Ray or by a member. What died meanwhile is
    started anew by Serve (gateways, nodes, routers), and gets no table; or not at all (expert actors: what they are to
    hold is in what cannot be read). `status` names them.

    Args:
        why: What cannot be read, and what to do.
    """

    def __init__(self, name: str, why: FormatError) -> None:
        self._name = name
        self._why = str(why)
        self._apps = {name}
        self._heard_s, self._began_s = time.monotonic(), time.time()
        self._stopping, self._writing = asyncio.Event(), asyncio.Lock()
        self._num_heard = self._num_shown = 0
        self._experts = expert_actors(name)  # of its beginning
        logger.error("service %s is left as it is: %s", name, why)
        self._watching = asyncio.get_event_loop().create_task(self._leave_when_over())

    async def news(self, known: object, timeout_s: float) -> dict[str, Any]:
        """Says nothing but that the service is being stopped, once it is.

        Raises:
            ValueError: Whoever asks is of before versioned formats, and would not understand the answer.
        """
        if not isinstance(known, tuple | list):
            await asyncio.sleep(timeout_s)
            raise ValueError(self._why)
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout_s)
        except TimeoutError:
            return pack_news()
        return pack_news(stopping=True)

    async def announce(self, member_id: str, said: Any) -> None:
        """Takes whatever is said, of any format: who is heard does not take this controller for hung."""
        self._heard_s = time.monotonic()
        self._num_heard += 1
        given: Any = said.get("data") if isinstance(said, dict) else said  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        app = given.get("app") if isinstance(given, dict) else getattr(given, "app", None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(app, str):
            self._apps.add(app)

    async def leave(self, member_id: str, snapshot: object) -> None:
        """Nothing is kept of members."""

    async def snapshots(self, member_id: str, own: object) -> Any:
        """Raises RuntimeError: what others have counted is not known."""
        raise RuntimeError(self._why)

    async def service(self) -> dict[str, Any]:
        """Raises FormatError: it cannot be read."""
        raise FormatError(self._why)

    async def apply(self, service: object, seen_version: str) -> None:
        """Raises FormatError: nothing is changed."""
        raise FormatError(self._why)

    async def ask(self, question: str, *given: object) -> Any:
        """Raises FormatError: nothing is changed."""
        raise FormatError(self._why)

    async def note(self, text: str) -> None:
        logger.info("%s", text)

    async def status(self) -> dict[str, Any]:
        """Returns what `manta status` shows; of the parts it knows no more than their names."""
        now = expert_actors(self._name)
        ended = [name for name in self._experts if name not in now]
        texts = [self._why, f"{len(now)} expert actors run: {', '.join(now) or 'none'}"]
        texts += [f"{name} has ended, and is not replaced while the service is refused" for name in ended]
        return {
            "name": self._name,
            "model": "unknown",
            "spec_version": "unknown",
            "manta": MANTA,
            "state": "refused",
            "resize": None,
            "controller": {"pid": os.getpid(), "host": ray.get_runtime_context().get_node_id()},
            "experts": [],
            "expert_actors": now,
            "routers": [],
            "attention_nodes": [],
            "gateways": [],
            "events": [{"time": self._began_s, "text": text, "failed": text != texts[1]} for text in texts],
        }

    async def stop(self) -> list[str]:
        """Ends the service: whoever asks for that means it, whatever is stored."""
        self._stopping.set()
        kill_experts(self._name)
        release_all(self._name)
        forget_data_plane_key(self._name)
        async with self._writing:
            forget_service(self._name)
        return sorted(self._apps)

    async def _beat(self) -> None:
        """Shows, as `Control` does, that it hears members: one of them alone does not have it ended."""
        if self._num_heard == self._num_shown:
            return
        self._num_shown = self._num_heard
        try:
            async with self._writing:
                if not self._stopping.is_set():
                    await asyncio.to_thread(store_beat, self._name, f"{self._began_s}/{self._num_shown}")
        except Exception as error:  # Ray's store is away: then nobody is ended, either
            logger.warning("the beat cannot be stored: %s", cause_of(error))

    async def _leave_when_over(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._beat()
            if time.monotonic() - self._heard_s < ALONE_S:
                continue
            try:
                wanted = await asyncio.wait_for(asyncio.to_thread(wanted_by_serve, self._name), SERVE_ANSWERS_S)
            except Exception as error:
                logger.warning("Serve does not say whether it has the application: %s", cause_of(error))
                wanted = True
            self._heard_s = time.monotonic()
            if not wanted:
                await self.stop()
                ray.get_runtime_context().current_actor.exit.remote()
                return
