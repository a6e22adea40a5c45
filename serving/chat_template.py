"""Renders a checkpoint's chat template, which is a stranger's Jinja program, in a sandbox.

The names a template may use (raise_exception, strftime_now, tojson, the `generation` tag, loop controls) are those
that Hugging Face defines: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """The template is broken, or refuses these messages."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is simply rendered."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template and the special tokens (bos_token, eos_token, ...) that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ChatTemplateError when `source` is not valid Jinja."""
        self._special_tokens = dict(special_tokens)
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
    ) -> str:
        """The prompt's text; special tokens are part of it. `extra` are more variables for the template.

        With `continue_final_message` the text ends with the last message's content, so that the model goes on
        with it. Raises ChatTemplateError when the template refuses the messages.
        """
        variables = {**self._special_tokens, "tools": None, "documents": None, **(extra or {})}
        variables |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._template.render(variables)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error
        return _cut_after_final_message(text, messages) if continue_final_message else text


def _cut_after_final_message(text: str, messages: Sequence[Message]) -> str:
    content = str(messages[-1].get("content") or "").strip()
    start = text.rfind(content)
    if start < 0:
        raise ChatTemplateError("the model's chat template changes the final message, so it cannot be continued")
    return text[: start + len(content)]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
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
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
