"""Which tokens end a text, by a checkpoint's own files. No torch here: the gateway reads this too.

As in transformers' `generate()`: a generation_config.json, where there is one, says it alone, even if it names none;
else config.json does. Where they name none, the tokenizer's `eos_token` does: `serving.end_tokens`.
"""

from model.config_fields import ConfigFields

GENERATION_FILE = "generation_config.json"
FIELD = "eos_token_id"


def read_end_tokens(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text, each once; empty if neither file names any.

    Args:
        fields: config.json's.

    Raises:
        ConfigError: A file cannot be read, or names what is no token.
    """
    generation = fields.path.with_name(GENERATION_FILE)
    is_there = generation.is_symlink() or generation.is_file()  # in this order: a link may lead where nobody may look
    said = (ConfigFields.read(generation) if is_there else fields).token_ids(FIELD)
    # One beyond the vocabulary (an added token that was never trained) cannot be drawn, so it ends nothing.
    return tuple(dict.fromkeys(token for token in said if 0 <= token < vocab_size))
