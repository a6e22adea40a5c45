"""One target in a process of its own: `python -m tests.fuzz.execute TARGET FOLDER [libFuzzer's arguments]`.

`TARGET --reduce FILE` makes a failing input smaller instead, and prints what it still does.
"""

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.guard import Guarded
from tests.fuzz.reduce import reduced
from tests.fuzz.targets import load, steering, words_of

HAS_ATHERIS = find_spec("atheris") is not None
REDUCE_S = 20.0
WORDS_FILE = "words"
FAILURE = "failure: "  # begins the line that tells a signature: libraries print too
KNOWN_FILE = "known"  # failures that were found already, a line each: passed over


def fuzz(name: str, folder: Path, arguments: list[str]) -> None:
    """Runs libFuzzer; does not return. `folder` is where the target's words go, and known failures are read."""
    import atheris
    from atheris.import_hook import instrument_imports

    with instrument_imports(include=steering(name)):
        module = load(name)
    guarded, known = Guarded(module.one), set((folder / KNOWN_FILE).read_text().splitlines())

    def one(data: bytes) -> None:
        try:
            guarded(data)
        except Exception as error:
            if signature(error) not in known:
                raise

    module.one(b"")  # what is imported or compiled by the first call is no input's memory
    words = words_of(module)
    (folder / WORDS_FILE).write_text("".join(f'"{_escaped(word)}"\n' for word in words))
    dictionary = [f"-dict={folder / WORDS_FILE}"] if words else []  # an empty one is an error
    atheris.Setup([name, *dictionary, *arguments], one)
    atheris.Fuzz()


def signature(error: BaseException) -> str:
    """What is equal for failures of one cause: the kind of error, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, {frame.name}, line {frame.lineno}"


def reduce(name: str, path: Path) -> None:
    """Writes a smaller input that fails alike over `path`; prints its signature, then its traceback."""
    guarded = Guarded(load(name).one)

    def failure(data: bytes) -> str | None:
        try:
            guarded(data)
        except Exception as error:
            return signature(error)
        return None

    found = reduced(path.read_bytes(), failure, REDUCE_S)
    path.write_bytes(found.data)
    print(f"{FAILURE}{found.failure}")
    try:
        guarded(found.data)
    except Exception:
        traceback.print_exc(file=sys.stdout)


def _escaped(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02X}" for byte in word)


if __name__ == "__main__":
    target, *rest = sys.argv[1:]
    if rest[:1] == ["--reduce"]:
        reduce(target, Path(rest[1]))
    else:
        fuzz(target, Path(rest[0]), rest[1:])
