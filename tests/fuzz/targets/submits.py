"""A Submit becomes a sequence that the engine runs and frees, or is refused by SubmitError; none fails inside."""

from google.protobuf.message import DecodeError

from attention.admission import SubmitError
from protos.generation_pb2 import FAILED, Submit
from tests.attention.small_engine import make_engine

STEPS = 4
_engine = make_engine(7)


def one(data: bytes) -> None:
    try:
        submit = Submit.FromString(data)
    except DecodeError:
        return
    try:
        _engine.submit("fuzzed", submit)
    except SubmitError:
        assert not _engine.has_work
        return
    try:
        for _ in range(STEPS):
            if _engine.has_work:
                for _, message in _engine.step().messages:
                    assert message.finish_reason != FAILED, message.failure.message
    finally:
        _engine.cancel("fuzzed")
        _engine.check_integrity()
    assert not _engine.has_work
