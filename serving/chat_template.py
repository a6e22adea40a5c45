"""Renders a checkpoint's chat template, which is a stranger's Jinja program, in a sandbox.

What is bounded here is what a client can make of an ordinary template, whose messages and variables it gives: how long
the text becomes, and how often names are looked up. A template that loops by itself is its owner's own.

The names a template may use (raise_exception, strftime_now, tojson, the `generation` tag, loop controls) are those
that Hugging Face defines: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import datetime
import json
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
# What an expression of a template may end in, given values that it was not written for; RecursionError: nested ones.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
MAX_CHARS = 1 << 20
MAX_LOOKUPS = 500_000  # of names, in one rendering: about half a second; 2048 messages take a tenth of them


class ChatTemplateError(ValueError):
    """The template is broken, or refuses these messages."""


class _TooMuch(TemplateError):
    """A rendering has reached one of its limits."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is simply rendered.

    What is set in it ends with it, as in transformers.
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        return [nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)]


class ChatTemplate:
    """A compiled template and the special tokens (bos_token, eos_token, ...) that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ChatTemplateError when `source` is not valid Jinja."""
        self._special_tokens = dict(special_tokens)
        self._reads_content = "content" in source
        self.names_developer = "developer" in source
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the model's chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
        max_chars: int = MAX_CHARS,
    ) -> str:
        """The prompt's text; special tokens are part of it. `extra` are more variables for the template.

        With `continue_final_message` the text ends with the last message's content, so that the model goes on
        with it: as transformers does it. Raises ChatTemplateError when the template refuses the messages.
        """
        variables = {**self._special_tokens, "tools": None, "documents": None, **(extra or {})}
        variables |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        if continue_final_message:
            return self._render_open(messages, variables, max_chars)
        return self._render(variables, max_chars)

    def _render(self, variables: Mapping[str, Any], max_chars: int) -> str:
        _BUDGET.start(max_chars)
        try:
            return _joined(self._template.generate(variables))
        except REFUSALS as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error

    def _render_open(self, messages: Sequence[Message], variables: Mapping[str, Any], max_chars: int) -> str:
        """Renders with a mark after the last content, and cuts there: the content itself may be anywhere in the text.

        The blank that follows the mark tells whether the template strips contents: then what it leaves before the
        mark is stripped as well, as it would be without one.
        """
        content = str(messages[-1]["content"])
        mark = f"CONTINUE_{secrets.token_hex(16).upper()}"  # nobody can have written it
        marked = [*messages[:-1], {**messages[-1], "content": f"{content}{mark} "}]
        text = self._render({**variables, "messages": marked}, max_chars)
        end = text.rfind(mark)
        if not self._reads_content or end < 0 or content.strip() not in text:
            raise ChatTemplateError("the model's chat template changes the final message, so it cannot be continued")
        return text[:end] if text.startswith(" ", end + len(mark)) else text[:end].rstrip()


class _Budget(threading.local):
    """What is left to the rendering that this thread does."""

    max_chars = 0
    lookups = 0

    def start(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.lookups = MAX_LOOKUPS

    def look_up(self) -> None:
        self.lookups -= 1
        if self.lookups < 0:
            raise _TooMuch(f"it looks up more than {MAX_LOOKUPS} names; send fewer messages, or smaller variables")


_BUDGET = _Budget()


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts what loops cannot do without."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        _BUDGET.look_up()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _BUDGET.look_up()
        return super().getitem(obj, argument)

    def call(*arguments: Any, **named: Any) -> Any:  # as in jinja2, whose templates may name anything `self`
        _BUDGET.look_up()
        return ImmutableSandboxedEnvironment.call(*arguments, **named)


def _joined(pieces: Iterable[str]) -> str:
    """The pieces in one text, as long as it may be."""
    held: list[str] = []
    left = _BUDGET.max_chars
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise _TooMuch(f"it makes more than {_BUDGET.max_chars} characters of them; send less")
        held.append(piece)
    return "".join(held)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag])
    # Jinja's own tojson escapes for HTML, which would change what the model reads.
    filters = cast("dict[str, Any]", environment.filters)
    filters["tojson"] = _tojson
    cast("dict[str, Any]", environment.globals).update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    # Indented, what is deep becomes large: each line begins with as many spaces as it is deep.
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined(encoder.iterencode(value))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
