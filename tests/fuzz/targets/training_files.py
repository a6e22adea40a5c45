"""A training file is read, or refused by a SpecError of readable length."""

from spec.errors import SpecError
from tests.fuzz.folder import Folder
from tests.fuzz.yaml_words import yaml_words
from training.spec import load_training
from training.spec_schema import TrainingSpec

WORDS = yaml_words(TrainingSpec)
MAX_MESSAGE_CHARS = 100_000
_folder = Folder()


def one(data: bytes) -> None:
    directory = _folder.write({"training.yaml": data})
    try:
        load_training(directory / "training.yaml")
    except SpecError as error:
        assert len(str(error)) < MAX_MESSAGE_CHARS, f"a message of {len(str(error))} characters"
