"""Going on with the final message: the prompt is the one that transformers makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from serving.chat_template import ChatTemplate, ChatTemplateError
from tests.serving.small_templates import CHATML, MIXTRAL, TEMPLATES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ENDINGS = ["", " ", "\n", "\t ", "\n```\n", "s", "<", "end", "</s>", "</s", "assistant", "[INST]", "\xa0"]
CONTENTS = st.one_of(
    st.lists(st.sampled_from([*ENDINGS, "1, 2,", "</think>", "{{ m }}", "A"]), max_size=4).map("".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
)


def by_transformers(source: str, messages: list[dict[str, str]]) -> str | None:
    """None: refused."""
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    options = {"chat_template": source, "tokenize": False, "continue_final_message": True}
    with refusing(ValueError, "continue_final_message is set"):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=False, **options)


def by_us(source: str, messages: list[dict[str, str]]) -> str | None:
    with refusing(ChatTemplateError, "final message"):
        return ChatTemplate(source, SPECIAL).render(messages, add_generation_prompt=False, continue_final_message=True)


@contextmanager
def refusing(kind: type[ValueError], words: str) -> Iterator[None]:
    """Lets an error pass that says so; any other is raised."""
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise


@pytest.mark.parametrize("name", TEMPLATES)
@given(first=CONTENTS, last=CONTENTS)
@example(first="hi", last="1, 2, ")
@example(first="hi", last="")
@example(first="same", last="same")
@example(first="hi", last="s")
@example(first="hi", last="<|im_end|>")
@example(first="hi", last="LOUD")
@example(first="hi", last="thought</think>\n\nanswer ")
def test_as_transformers_does_it(name: str, first: str, last: str) -> None:
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": last}]
    assert by_us(TEMPLATES[name], messages) == by_transformers(TEMPLATES[name], messages)


@pytest.mark.parametrize("content", ENDINGS)
def test_the_prompt_ends_right_after_the_content(content: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    assert by_us(MIXTRAL, messages) == f"<s> [INST] hi [/INST] {content}"
    ending = f"<|im_start|>assistant\n{content}"
    assert cast("str", by_us(CHATML, messages)) == f"<|im_start|>user\nhi<|im_end|>\n{ending}"
