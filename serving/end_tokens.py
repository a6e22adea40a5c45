"""What ends a text where a model's configuration does not say: its tokenizer's `eos_token`.

transformers' `generate()` would go on to the limit; vLLM and SGLang end there, and so does Manta: a service whose texts
never end is of no use. A configuration that names another end means it, and is not asked about.
"""

from dataclasses import replace
from pathlib import Path

from model.config import MixtralConfig


def with_end(config: MixtralConfig, directory: Path) -> MixtralConfig:
    """Returns the configuration with what ends a text.

    Args:
        config: As `directory`/config.json has it.

    Raises:
        TokenizerError: It names nothing, and the tokenizer's files cannot be used.
    """
    if config.eos_token_ids:
        return config
    from serving.tokenizer_files import load_tokenizer  # imports tokenizers, which few models need here

    loaded = load_tokenizer(directory)
    if loaded is None or loaded.eos_id is None or loaded.eos_id >= config.vocab_size:
        return config
    return replace(config, eos_token_ids=(loaded.eos_id,))
