"""Request fields that clients know and that change nothing here: those that are refused, and those without an effect.

What Manta honours is in `serving.schemas`. A field is in exactly one of the three places, and one that is in none is
refused. `python -m serving.fields_reference` writes all of them into docs/api.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A field that is answered 400, unless it asks for nothing.

    Args:
        instead: What a client can do, as an imperative.
        neutral: Values that ask for nothing, beside null, "", [] and {}.
    """

    instead: str
    neutral: tuple[object, ...] = ()


NO_GUIDE = Refused("output cannot be constrained to a grammar here; remove it and check the text that comes back")
NO_TOOLS = "the model's answer is text only; describe the tools in a message and read the text"
NO_REASONING = "no reasoning is told apart from the answer here; remove it"
NO_BEAMS = "ask for n choices with logprobs instead"
ONE_PROCESS = "it belongs to vLLM's own parts, which this service does not have; remove it"

REFUSED: Mapping[str, Refused] = {
    # OpenAI's
    "suffix": Refused("the model does not fill in; put what follows into the prompt"),
    "response_format": Refused("only {'type': 'text'} is allowed", ({"type": "text"},)),
    "tools": Refused(NO_TOOLS),
    "tool_choice": Refused(NO_TOOLS, ("none", "auto")),
    "functions": Refused(NO_TOOLS),
    "function_call": Refused(NO_TOOLS, ("none", "auto")),
    "modalities": Refused("this model writes text only", (["text"],)),
    "audio": Refused("this model writes text only; remove it"),
    "moderation": Refused("nothing is moderated here; remove it"),
    "prediction": Refused("tokens are not predicted from a given text; remove it"),
    "reasoning_effort": Refused(NO_REASONING, ("none",)),
    "service_tier": Refused("there is one tier; use priority to be served before others", ("auto", "default")),
    "verbosity": Refused("ask for shorter or longer answers in a message", ("medium",)),
    "web_search_options": Refused("nothing is searched here; remove it"),
    # vLLM's
    "chat_template": Refused(
        "the template of the model's checkpoint is used; chat_template_kwargs may set its variables"
    ),
    "documents": Refused("put the documents into a message"),
    "echo": Refused("a chat's prompt is not repeated; use return_token_ids, or /v1/completions", (False,)),
    "early_stopping": Refused(NO_BEAMS, (False,)),
    "ec_transfer_params": Refused(ONE_PROCESS),
    "guided_choice": NO_GUIDE,
    "guided_decoding_backend": NO_GUIDE,
    "guided_grammar": NO_GUIDE,
    "guided_json": NO_GUIDE,
    "guided_regex": NO_GUIDE,
    "guided_whitespace_pattern": NO_GUIDE,
    "kv_transfer_params": Refused(ONE_PROCESS),
    "length_penalty": Refused(NO_BEAMS, (1,)),
    "logits_processors": Refused("code from outside is not run here; use logit_bias, allowed_token_ids or bad_words"),
    "prompt_embeds": Refused("send text or token ids as prompt"),
    "repetition_detection": Refused("use repetition_penalty, frequency_penalty or stop"),
    "return_prompt_text": Refused("use return_token_ids, or /tokenize and /detokenize", (False,)),
    "return_token_offsets": Refused("use logprobs of /v1/completions, which have text_offset", (False,)),
    "routed_experts_prompt_start": Refused("which expert took which token is not reported", (0,)),
    "stream_interval": Refused("what has come is sent at once", (1,)),
    "structured_outputs": NO_GUIDE,
    "thinking_token_budget": Refused(NO_REASONING, (-1,)),
    "use_beam_search": Refused(NO_BEAMS, (False,)),
    "vllm_xargs": Refused("no extension that would read it is installed; remove it"),
    "watermarking": Refused("texts are not marked here; remove it", (False,)),
}

NO_CACHE = "there is no cache of prompts that requests could share"
NO_MEDIA = "it is about images and sound, which no message may hold"
NO_EFFECT: Mapping[str, str] = {
    # OpenAI's
    "metadata": "it labels stored completions, and none is stored",
    "parallel_tool_calls": "it is about tools, which are refused",
    "prompt_cache_key": NO_CACHE,
    "prompt_cache_options": NO_CACHE,
    "prompt_cache_retention": NO_CACHE,
    "safety_identifier": "nothing is reported about users",
    "store": "completions are not stored, and no endpoint lists any",
    "user": "nothing is reported about users",
    # vLLM's
    "cache_salt": NO_CACHE,
    "include_reasoning": "no reasoning is told apart from the answer, so there is none to leave out",
    "media_io_kwargs": NO_MEDIA,
    "mm_processor_kwargs": NO_MEDIA,
    "return_mm_kwargs": NO_MEDIA,
    "session_id": "any gateway serves any request, and nothing is kept between two",
    "spaces_between_special_tokens": (
        "the tokenizer's own decoder says what stands between tokens; byte-level and SentencePiece's put nothing there"
    ),
}
