"""The real gateway on a real engine with a tiny random model, in one process, and whether it is empty."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

from attention.admission import SubmitError
from manta.local import LocalModel, LocalSettings
from protos.generation_pb2 import SequenceOutput, Submit
from serving.app import build_app
from serving.generator import GenerationError
from serving.metrics import MetricsSnapshot
from serving.settings import GatewaySettings, RequestLimits
from serving.tokenizer import TextCodec
from tests.fuzz.asgi import Answer, InProcess, check_shape
from tests.random_checkpoint import make_checkpoint
from transport.errors import CallError

MAX_CONTEXT, WINDOW, VOCABULARY, EOS = 48, 16, 320, 1
LIMITS = RequestLimits(max_n=4, max_prompts=4, max_sequences=8)
SMALL: dict[str, Any] = {"hidden_size": 32, "ffn_size": 48, "num_layers": 1, "num_experts": 4}
ENGINE = LocalSettings(max_context=MAX_CONTEXT, max_sequences=4, max_queued=16, prefill_chunk=8, cache_tokens=96)


class EngineGenerator:
    """A `serving.generator.Generator` that turns an engine whenever somebody waits for a token."""

    num_nodes = 1

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def generate(self, submit: Submit) -> AsyncIterator[SequenceOutput]:
        """See `serving.generator.Generator`."""
        outputs = self._model.generate(submit)
        try:
            for output in outputs:
                yield output
                await asyncio.sleep(0)
        except (SubmitError, CallError) as error:
            raise GenerationError(error.code, error.message) from error
        finally:
            outputs.close()

    async def fleet_metrics(self) -> list[MetricsSnapshot]:
        """See `serving.generator.Generator`."""
        return []


class SmallService:
    """Answers requests, and checks after each that nothing of it is left."""

    def __init__(self, directory: Path, seed: int) -> None:
        make_checkpoint(directory, seed=seed, window=WINDOW, vocab_size=VOCABULARY, max_context=MAX_CONTEXT, **SMALL)
        self._model = LocalModel(directory, ENGINE)
        settings = GatewaySettings("small", MAX_CONTEXT, (EOS,), VOCABULARY, limits=LIMITS)
        self._app = InProcess(build_app(settings, TextCodec.load(directory), EngineGenerator(self._model)))

    def ask(self, path: str, body: Any) -> Answer:
        """Sends a body and checks the answer, and what is left."""
        answer = self._app.post(path, json.dumps(body).encode())
        check_shape(answer)
        self._check_stream(answer)
        self.check_empty()
        return answer

    def ask_together(self, requests: list[tuple[str, Any, int | None]]) -> list[Answer | None]:
        """Sends several at once; who leaves after so many messages (the third of each) gets None."""
        answers = self._app.post_all([(path, json.dumps(body).encode(), leaves) for path, body, leaves in requests])
        for answer in answers:
            if answer is not None:
                check_shape(answer)
                self._check_stream(answer)
        self.check_empty()
        return answers

    def check_empty(self) -> None:
        """Asserts that the engine holds no sequence, lane or block."""
        engine = self._model.engine
        engine.check_integrity()
        assert not engine.has_work, "a sequence was left behind"
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting

    @staticmethod
    def _check_stream(answer: Answer) -> None:
        """A stream ends with [DONE], and no event of it is a failure of the server's."""
        if answer.body.startswith(b"data: "):
            events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
            assert events[-1] == b"[DONE]", events[-1]
            errors = [event for event in map(json.loads, events[:-1]) if "error" in event]
            assert not [error for error in errors if error["error"]["type"] == "server_error"], errors


@cache
def small_service(seed: int) -> SmallService:
    """One for each seed; its model is gone from the disk again."""
    with tempfile.TemporaryDirectory() as folder:
        return SmallService(Path(folder), seed)
