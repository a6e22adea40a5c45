"""The words of whatever failed, out of what Ray and Serve wrap around them."""

import pickle

from ray.exceptions import RayTaskError

from checkpoint.errors import MissingTensor
from cluster.causes import cause_in, cause_of

DAMAGED = MissingTensor("model.safetensors", "tensor a.b is missing.", "Copy the checkpoint again.")
SERVE_REPORT = """A replica failed to start with exception. Retrying 2 more time(s). Error:
ray::ServeReplica:manta:AttentionNode.initialize_and_get_metadata() (pid=9, ip=127.0.0.1, repr=<Actor object>)
  File "concurrent/futures/_base.py", line 449, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
RuntimeError: Traceback (most recent call last):
  File "replica.py", line 1, in initialize
    await self._user_callable_wrapper.call_constructor()
  File "weights.py", line 3, in read
    raise MissingTensor(where, problem, remedy)
checkpoint.errors.MissingTensor: model.safetensors: tensor a.b is missing.
  Copy the checkpoint again.
"""


def test_a_plain_error_is_its_message_in_one_line() -> None:
    assert cause_of(ValueError("first\n  second")) == "first second"
    assert cause_of(ValueError()) == "ValueError"


def test_a_task_error_is_its_cause() -> None:
    error = RayTaskError("start", "Traceback\n...", DAMAGED)
    assert cause_of(error) == str(DAMAGED)
    assert cause_of(error.as_instanceof_cause()) == str(DAMAGED)


def test_errors_survive_being_sent() -> None:
    assert str(pickle.loads(pickle.dumps(DAMAGED))) == str(DAMAGED)  # noqa: S301 - our own bytes


def test_the_last_exception_of_a_report() -> None:
    assert cause_in(SERVE_REPORT) == "model.safetensors: tensor a.b is missing. Copy the checkpoint again."


def test_a_report_without_a_traceback_is_kept() -> None:
    assert cause_in("It waits for resources.\n") == "It waits for resources."
