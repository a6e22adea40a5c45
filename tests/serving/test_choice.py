"""One sequence's messages, however they were coalesced, give one answer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protos.generation_pb2 import LENGTH, STOP, SequenceOutput, TokenLogprob
from serving.choice import Choice, Delta, TextRules
from serving.stopping import StopTable
from serving.tokenizer import TextCodec
from tests.serving.small_tokenizers import train_byte_level

CODEC = TextCodec(train_byte_level())
EOS = 1


def feed(token_ids: list[int], cuts: list[int], rules: TextRules) -> tuple[Choice, Delta]:
    """Sends `token_ids` (which ended with their last one if that is EOS) cut into messages of `cuts` tokens."""
    choice, delta = Choice(0, CODEC.detokenizer(continues=True), rules), Delta()
    start = 0
    for size in [*cuts, len(token_ids)]:
        part = token_ids[start : start + size]
        start += size
        output = SequenceOutput(token_ids=part, logprobs=[TokenLogprob(token_id=i) for i in part])
        if start >= len(token_ids):
            output.finish_reason = STOP if token_ids[-1:] == [EOS] else LENGTH
            if output.finish_reason == STOP:
                output.stop_token_id = EOS
        choice.push(output, delta)
        if choice.finish_reason is not None:
            break
    return choice, delta


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(2, 399), max_size=20),
    st.booleans(),
    st.lists(st.integers(1, 4), max_size=20),
    st.sampled_from([(), ("e",), ("a", "he", "\ufffd")]),
    st.integers(0, 5),
)
def test_cutting_changes_nothing(
    token_ids: list[int], eos: bool, cuts: list[int], stops: tuple[str, ...], min_tokens: int
) -> None:
    token_ids = [*token_ids, EOS] if eos else token_ids
    rules = TextRules(stops=StopTable(stops) if stops else None, min_tokens=min_tokens, eos_token_ids=frozenset({EOS}))
    one, many = feed(token_ids, [], rules), feed(token_ids, cuts, rules)
    for choice, delta in (one, many):
        assert choice.finish_reason == delta.finish_reason is not None
        assert choice.num_tokens == len(delta.token_ids) == len(delta.logprobs)
    assert (one[1].text, one[1].token_ids, one[1].stop_reason) == (many[1].text, many[1].token_ids, many[1].stop_reason)
    if not stops:
        assert one[1].text == CODEC.decode(token_ids)
        assert one[1].finish_reason == ("stop" if eos else "length")


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    [a] = encode("a")
    choice, delta = feed([a] * 10, [], TextRules(stops=StopTable(["aaa"])))
    assert (choice.num_tokens, delta.text, delta.stop_reason) == (3, "", "aaa")


def test_the_end_tells_every_missing_expert() -> None:
    choice, delta = Choice(0, CODEC.detokenizer(continues=True), TextRules()), Delta()
    for token_id, missing in ((5, [3]), (6, []), (7, [0, 3])):
        choice.push(SequenceOutput(token_ids=[token_id], missing_experts=missing), delta)
        assert not delta.missing_experts
    last = Delta()  # what came before has been sent
    choice.push(SequenceOutput(token_ids=[8], finish_reason=LENGTH), last)
    assert last.missing_experts == [0, 3]


def test_a_stop_string_is_an_end_that_tells_missing_experts() -> None:
    [a] = encode("a")
    choice, delta = Choice(0, CODEC.detokenizer(continues=True), TextRules(stops=StopTable(["aa"]))), Delta()
    choice.push(SequenceOutput(token_ids=[a, a, a], missing_experts=[2]), delta)
    assert (delta.finish_reason, delta.missing_experts) == ("stop", [2])


def encode(text: str) -> list[int]:
    return train_byte_level().encode(text, add_special_tokens=False).ids
