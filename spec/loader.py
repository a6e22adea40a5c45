"""YAML out of a file, and what is wrong with it in words."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.scanner import ScannerError

from spec.errors import Problem, SpecError

MAX_FILE_BYTES = 1 << 20
MAX_INTEGER_BITS = 1024  # Python would take longer ones, and then refuse to show them in an error
MAX_NUMBER_CHARS = 2 * MAX_INTEGER_BITS  # written; some ways to read a number take quadratic time
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|.*:.*)")  # of YAML 1.1: 010 is 8, and 1:30 is 90
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"  # `<<`, which stands for no value
MAX_NODES = 20_000  # values of a file, each counted as often as aliases (`*name`) repeat it


def read_yaml(path: Path) -> object:
    """What a YAML file holds, as plain data.

    Raises:
        SpecError: it cannot be read, is not YAML, gives a key twice, or is larger, or its aliases make it larger, than
            what describes anything.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise yaml.YAMLError(f"it has more than {MAX_FILE_BYTES} bytes; is it the right file?")
        return parse_yaml(content.decode("utf-8"), str(path))
    except OSError as error:
        raise SpecError([Problem("", f"cannot be read: {error}")], str(path)) from error
    except UnicodeDecodeError as error:
        raise SpecError([Problem("", f"is not text in UTF-8 ({error}); save it as that.")], str(path)) from error
    except yaml.YAMLError as error:
        raise SpecError([Problem("", _problem(error))], str(path)) from error


def parse_yaml(text: str, source: str) -> object:
    """What YAML says, as plain data.

    Args:
        source: What to name in errors.

    Raises:
        SpecError: as `read_yaml`.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise SpecError([Problem("", _problem(error))], source) from error
    except RecursionError as error:
        raise SpecError(
            [Problem("", "is nested too deeply; a section has one or two others around it.")], source
        ) from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, made strict.

    A key given twice is an error: PyYAML would silently drop the first. So is a value that does not fit its tag (a 13th
    month, `!!int x`), an escape of no character, or a version of a thousand digits, for which PyYAML raises whatever
    int() and the like do. And aliases that repeat others by the thousand are refused before anything is made of them.
    """

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: yaml.Mark) -> list[str]:
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (OverflowError, ValueError) as error:
            problem = r'this escape stands for no character; the last one is "\U0010FFFF"'
            raise ScannerError(problem=problem, problem_mark=self.get_mark()) from error

    def scan_yaml_directive_number(self, start_mark: yaml.Mark) -> int:
        try:
            return super().scan_yaml_directive_number(start_mark)
        except ValueError as error:
            problem = "this is no version of YAML; leave the line out"
            raise ScannerError(problem=problem, problem_mark=self.get_mark()) from error

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
                _check_number(node.value)
            value: object = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"it has more than {MAX_INTEGER_BITS} bits")
            return value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"this cannot be read as {kind} ({error}); put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):  # such as `!!set [1]`
            problem = f"this cannot be read as {node.tag.rpartition(':')[2]}: it is no mapping"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # As written, for `1` and "1" are the same field; and as read, for 16 and 0x10 are.
            read = key.value if key.tag == _MERGE else self.construct_object(key)
            if not isinstance(read, Hashable):  # such as `!!map`
                problem = f"this key is read as {key.tag.rpartition(':')[2]}, which cannot be one; write plain text"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen or read in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{key.value}` is given twice; keep one", problem_mark=key.start_mark
                )
            seen |= {key.value, read}
        return super().construct_mapping(node, deep)


def _check_number(text: str) -> None:
    """Raises ValueError for a number that costs too much to read, or that hardly anybody means as YAML 1.1 reads it."""
    if len(text) > MAX_NUMBER_CHARS:
        raise ValueError(f"it has more than {MAX_NUMBER_CHARS} characters")
    if _OTHER_BASE.fullmatch(text):
        raise ValueError(
            "with a colon it would be read to base 60, and with a zero before it to base 8; write it plainly"
        )


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node is, aliases counted as what they stand for. Raises ConstructorError above MAX_NODES."""
    if node in known:
        if not known[node]:
            raise yaml.constructor.ConstructorError(problem="this contains itself", problem_mark=node.start_mark)
        return known[node]
    known[node] = 0  # being counted
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    number = 1
    for each in inner:
        number += _count(each, known)
        if number > MAX_NODES:
            problem = f"from here on there are more than {MAX_NODES} values, aliases (*) counted as what they repeat"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
    known[node] = number
    return number


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"is not valid YAML: {error}"
    mark = error.problem_mark
    context = f" {error.context}," if error.context else ""
    return f"is not valid YAML: line {mark.line + 1}, column {mark.column + 1}:{context} {error.problem}."
