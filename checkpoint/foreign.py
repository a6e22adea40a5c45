"""What to say of a directory that holds no safetensors weights under their usual names."""

import shlex
from pathlib import Path

from checkpoint.errors import CheckpointError, ForeignCheckpoint, MissingFile

# What transformers loads, and so can convert: one pickled file, or shards with the index that it wrote beside them.
_CONVERTIBLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLED = ("*.bin", "*.pt", "*.pth")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")  # what trainers pickle beside them
_ADAPTER = "adapter_config.json"
_WHY_NOT = "the weights are pickled, and pickles are not read, because unpickling runs whatever code is in them."


def no_weights(directory: Path) -> CheckpointError:
    """The error to raise for it.

    Raises:
        OSError: The directory cannot be listed.
    """
    if not directory.is_dir():
        return MissingFile(str(directory), "this directory does not exist.", "Give the directory of a Mixtral model.")
    if (directory / _ADAPTER).is_file():
        remedy = (
            "Merge it into its base model first: load both with peft (AutoPeftModelForCausalLM.from_pretrained), then "
            "merge_and_unload() and save_pretrained()."
        )
        return ForeignCheckpoint(str(directory), "this is an adapter (LoRA), not a whole model.", remedy)
    found = (path for pattern in _PICKLED for path in directory.glob(pattern))
    pickled = sorted(path for path in found if not path.name.startswith(_NO_WEIGHTS))
    if pickled:
        whole = next((directory / name for name in _CONVERTIBLE if (directory / name).is_file()), None)
        remedy = _conversion(directory) if whole else _merge_first(pickled)
        return ForeignCheckpoint(str(whole or pickled[0]), _WHY_NOT, remedy)
    packed = sorted(directory.glob("*.gguf"))
    if packed:
        remedy = "Get the model in Hugging Face format, with safetensors weights: what a GGUF file was made from."
        return ForeignCheckpoint(str(packed[0]), "GGUF files are not read.", remedy)
    other = sorted(directory.glob("*.safetensors"))
    if not other:
        problem = "there is neither model.safetensors nor model.safetensors.index.json."
        remedy = "Give a directory with a complete model in Hugging Face format, safetensors weights included."
        return MissingFile(str(directory), problem, remedy)
    names = ", ".join(path.name for path in other[:3])
    problem = f"there is neither model.safetensors nor model.safetensors.index.json; it has {names}."
    return MissingFile(str(directory), problem, _other_name(other))


def _conversion(directory: Path) -> str:
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({str(directory)!r}, dtype='auto').save_pretrained('CONVERTED')"
    )
    return (
        f"If you trust them, convert them: `python -c {shlex.quote(code)}`, copy the tokenizer's files there too, and "
        "give CONVERTED."
    )


def _merge_first(pickled: list[Path]) -> str:
    if all(path.match("pytorch_model-*-of-*.bin") for path in pickled):
        return (
            "These are shards: copy pytorch_model.bin.index.json, which lists them, too; with it they can be converted."
        )
    names = ", ".join(path.name for path in pickled[:3])
    return (
        f"transformers does not load {names} under such names either: get the model in Hugging Face format, with "
        "safetensors weights, or have the program that wrote these files merge them into one pytorch_model.bin (for "
        "DeepSpeed that is zero_to_fp32.py), which transformers converts."
    )


def _other_name(found: list[Path]) -> str:
    if len(found) == 1:
        return f"If that file is the whole model in Hugging Face format, rename it to model.safetensors; {_ELSE}"
    return f"If these are shards, copy model.safetensors.index.json too, which lists them; {_ELSE}"


_ELSE = "otherwise get the model in Hugging Face format."
