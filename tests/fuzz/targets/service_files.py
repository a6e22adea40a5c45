"""A service file is read, or refused by a SpecError of readable length."""

from cluster.spec import load_spec
from cluster.spec_schema import ServiceSpec
from spec.errors import SpecError
from tests.fuzz.folder import Folder
from tests.fuzz.yaml_words import yaml_words

WORDS = yaml_words(ServiceSpec)
MAX_MESSAGE_CHARS = 100_000
_folder = Folder()


def one(data: bytes) -> None:
    directory = _folder.write({"service.yaml": data})
    try:
        load_spec(directory / "service.yaml")
    except SpecError as error:
        assert len(str(error)) < MAX_MESSAGE_CHARS, f"a message of {len(str(error))} characters"
