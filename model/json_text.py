"""JSON that somebody else wrote: what is wrong with it, and what to do about it."""

import codecs
import json
from collections import Counter
from typing import cast

GIT_LFS_START = b"version https://git-lfs.github.com/spec/"
GIT_LFS_PROBLEM = "this is a git-lfs pointer, not the file itself."
GIT_LFS_REMEDY = "Run `git lfs install`, then `git lfs pull`, in the folder that was cloned."
LINK_PROBLEM = "this is a link to a file that does not exist."
LINK_REMEDY = (
    "Copy what it leads to, not the link (`cp -rL`): the hub's cache keeps files elsewhere, and links to them."
)
MAX_BYTES = 64 << 20  # of a file that only describes a model: larger than any that was ever published
MAX_SHOWN = 200  # characters of a value, or of a name, in an error

_COPY_AGAIN = "Copy the file again from where the model came from."
_SAVE_AS_UTF8 = "Save it as UTF-8 without a byte-order mark."
_MARKS = (
    (codecs.BOM_UTF8, "begins with a byte-order mark"),
    (codecs.BOM_UTF16_LE, "is UTF-16"),
    (codecs.BOM_UTF16_BE, "is UTF-16"),
)


class JsonError(ValueError):
    """A text that is no JSON object: `problem`, a sentence about `the file`, and `remedy`."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


def shortened(text: str) -> str:
    """The text, or its beginning: what an error repeats of a file is bounded."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def check_start(data: bytes) -> None:
    """Does nothing if a text begins as plain UTF-8 may.

    Raises:
        JsonError: It is something else that is known, for which another copy would be no remedy.
    """
    if data.startswith(GIT_LFS_START):
        raise JsonError(GIT_LFS_PROBLEM, GIT_LFS_REMEDY)
    for mark, words in _MARKS:
        if data.startswith(mark):
            raise JsonError(f"the file {words}, but must be plain UTF-8.", _SAVE_AS_UTF8)
    if b"\0" in data[:4]:
        raise JsonError("the file is UTF-16 or no text at all, but must be plain UTF-8.", _SAVE_AS_UTF8)


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise JsonError(f"the file gives {shortened(json.dumps(twice))} twice.", "Keep the one that is meant.")
    return found


def parse_object(data: bytes) -> dict[str, object]:
    """Returns the object that UTF-8 JSON holds.

    Raises:
        JsonError: It holds none.
    """
    check_start(data)
    try:
        value: object = json.loads(data.decode(), object_pairs_hook=_once_each)
    except JsonError:
        raise
    except RecursionError as error:
        raise JsonError("the file nests its values too deeply.", _COPY_AGAIN) from error
    except ValueError as error:
        raise JsonError(f"the file is not valid JSON ({error}).", _COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise JsonError("the file does not hold a JSON object.", _COPY_AGAIN)
    return cast("dict[str, object]", value)
