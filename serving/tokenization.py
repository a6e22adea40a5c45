"""The two endpoints that only translate between text and token ids, without generating anything."""

from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from serving.beside import beside
from serving.errors import invalid
from serving.gateway import Gateway
from serving.logprobs import to_json
from serving.prompts import check_ids, encode_chat, encode_text
from serving.schemas import DetokenizeBody, TokenizeBody
from serving.tokenizer import NoTokenizer, TextCodec
from serving.unsupported import check_limit, check_unsupported

SLICE = 8192  # items that are written at a time: the interpreter's lock is held meanwhile


async def tokenize(gateway: Gateway, request: Request) -> Response:
    """Token ids of a text or a chat, and how many the model can take. Raises ApiError (400)."""
    settings, codec = gateway.settings, gateway.codec
    body = await gateway.read(request, TokenizeBody)
    check_unsupported(body)
    if body.messages is not None:
        token_ids = (await encode_chat(body.chat(), codec, settings)).token_ids
    else:
        add_special_tokens = body.add_special_tokens is not False
        split = bool(body.split_special_tokens)
        token_ids = await encode_text(body.prompt or "", codec, settings, add_special_tokens, "prompt", split)
    names = bool(body.return_token_strs)
    content = await beside(lambda: _tokens(token_ids, codec, settings.max_context, names), len(token_ids))
    return Response(content, media_type="application/json")


async def detokenize(gateway: Gateway, request: Request) -> Response:
    """The text of token ids, special tokens included. Raises ApiError (400)."""
    settings, codec = gateway.settings, gateway.codec
    body = await gateway.read(request, DetokenizeBody)
    check_unsupported(body)
    token_ids = body.tokens
    check_limit("tokens", len(token_ids), settings.limits.max_prompt_tokens)
    check_ids(token_ids, settings, "tokens")

    def write() -> str:
        return f'{{"prompt":{to_json(codec.decode(token_ids, skip_special_tokens=False))}}}'

    try:
        return Response(await beside(write, len(token_ids)), media_type="application/json")
    except NoTokenizer as error:
        raise invalid(f"{error}.", "tokens") from error


def _tokens(token_ids: Sequence[int], codec: TextCodec, max_context: int, names: bool) -> str:
    strings = _array(token_ids, codec.token_name) if names else "null"
    counts = f'"count":{len(token_ids)},"max_model_len":{max_context}'
    return f'{{{counts},"tokens":{_array(token_ids)},"token_strs":{strings}}}'


def _array(token_ids: Sequence[int], what: Callable[[int], object] = int) -> str:
    slices = (to_json(list(map(what, token_ids[i : i + SLICE])))[1:-1] for i in range(0, len(token_ids), SLICE))
    return f"[{','.join(slices)}]"
