"""One answer for all who ask at the same time."""

import asyncio

import httpx
import pytest

from serving.app import build_app
from serving.fake import FakeGenerator
from serving.metrics import MetricsSnapshot
from serving.settings import GatewaySettings
from serving.shared import Shared
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL


def test_nobody_gets_what_was_asked_for_before_he_came() -> None:
    async def scenario() -> None:
        asked, answers = 0, asyncio.Event()

        async def ask() -> int:
            nonlocal asked
            asked += 1
            number = asked
            await answers.wait()
            return number

        shared = Shared(ask)
        first = asyncio.create_task(shared.get())
        await asyncio.sleep(0.01)
        crowd = [asyncio.create_task(shared.get()) for _ in range(50)]
        await asyncio.sleep(0.01)
        assert asked == 1
        crowd[0].cancel()
        answers.set()
        assert await first == 1
        assert set(await asyncio.gather(*crowd[1:])) == {2}
        assert await shared.get() == 3

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_what_fails_fails_for_those_who_wait_alone() -> None:
    async def scenario() -> None:
        outcomes = iter([ValueError("once"), None])

        async def ask() -> str:
            if (error := next(outcomes)) is not None:
                raise error
            return "answer"

        shared = Shared(ask)
        failed = await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in failed] == ["once"] * 3
        assert await shared.get() == "answer"

    asyncio.run(asyncio.wait_for(scenario(), 10))


class Fleet(FakeGenerator):
    """Counts how often it is asked, and how often at once."""

    asked = 0
    at_once = 0
    most_at_once = 0

    async def fleet_metrics(self) -> list[MetricsSnapshot]:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        return []


@pytest.mark.parametrize("num", [1, 200])
def test_a_crowd_of_scrapes_is_few_questions(num: int) -> None:
    async def scenario() -> None:
        fleet = Fleet()
        app = build_app(GatewaySettings(MODEL, 512), TextCodec(None), fleet)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=20) as client:
            responses = await asyncio.gather(*(client.get("/metrics") for _ in range(num)))
        assert {response.status_code for response in responses} == {200}
        assert all("manta_generation_tokens_total" in response.text for response in responses)
        assert fleet.most_at_once == 1
        assert fleet.asked <= max(1, num // 10)

    asyncio.run(asyncio.wait_for(scenario(), 60))
