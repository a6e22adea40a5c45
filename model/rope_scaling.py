"""How a checkpoint stretches its rotary embedding beyond the context it was first trained with, as config.json says.

Read as transformers reads it: a `rope_scaling` that is not empty replaces `rope_parameters` altogether, `rope_theta`
inside the section goes before the one beside it, `rope_type` before `type`, and `original_max_position_embeddings`
beside the section before the one inside. No torch here: the gateway reads this too.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from model.config_fields import ConfigFields

Kind = Literal["default", "linear", "dynamic", "yarn", "llama3"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_THETA = 1e6

OLD_FIELD, NEW_FIELD = "rope_scaling", "rope_parameters"
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class RopeScaling:
    """One scaling; fields that its kind does not use have their defaults. Frequencies: `model.rope`.

    Args:
        kind: `linear` divides every frequency by `factor`. `yarn` does so with slow ones, leaves fast ones, and ramps
            between; it also scales cos and sin. `llama3` is like it, with bounds of its own. `dynamic` changes nothing
            within the context, and is not computed beyond it.
        original_context: Positions that the model was first trained with (yarn, llama3).
        attention_factor: What cos and sin are multiplied by (yarn); None: follows from `factor`, and from both mscales
            if given.
        beta_fast: From so many turns within the original context on, a frequency is left as it is (yarn).
        beta_slow: Down from so many, it is divided (yarn).
        truncate: Whether the ramp begins and ends at whole dimensions (yarn).
        low_freq_factor: Below so many turns within the original context, a frequency is divided (llama3).
        high_freq_factor: Above so many, it is left as it is (llama3).
    """

    kind: Kind = "default"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


UNSCALED = RopeScaling()


def read_rope(fields: ConfigFields, max_context: int) -> tuple[float, RopeScaling]:
    """Reads theta and the scaling of a config.json whose `max_position_embeddings` is `max_context`.

    Raises:
        ConfigError: A field is missing, is not allowed, or says what is not computed; names it and the remedy.
    """
    section = fields.section(OLD_FIELD)
    if section.is_empty:
        section = fields.section(NEW_FIELD)
    for holder in (fields, section):
        if holder.get("partial_rotary_factor") not in (None, 1):
            raise holder.refuse("partial_rotary_factor", "absent or 1", "Partly rotated heads cannot be computed.")
    section.refuse_sections("one set of values for all layers")
    beside = fields.positive_number("rope_theta", default=DEFAULT_THETA)
    theta = section.positive_number("rope_theta", default=beside)
    kind = _kind(section)
    if kind == "default":
        return theta, UNSCALED
    if kind in ("linear", "dynamic"):
        return theta, RopeScaling(kind, _factor(section))
    original = _original_context(fields, section, max_context)
    if kind == "llama3":
        return theta, _read_llama3(section, original)
    if theta <= 1:  # the ramp's bounds are found with its logarithm
        holder = fields if section.get("rope_theta") is None else section
        raise holder.refuse("rope_theta", "above 1 where frequencies are scaled by YaRN")
    return theta, _read_yarn(section, original, max_context)


def beyond_context(scaling: RopeScaling) -> str:
    """Says, for errors, why a longer context than the checkpoint's is not computed; empty: no more to say."""
    if scaling.kind != "dynamic":
        return ""
    return (
        "; beyond it, the frequencies of its dynamic rotary scaling depend on the length so far, which is not computed"
    )


def rope_json(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """Returns the fields of config.json that old and new transformers read."""
    if scaling == UNSCALED:
        return {"rope_theta": theta, NEW_FIELD: {"rope_type": "default", "rope_theta": theta}}
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("yarn", "llama3"):
        said[_ORIGINAL] = scaling.original_context
    if scaling.kind == "llama3":
        said |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        names = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate")
        said |= {name: value for name, value in asdict(scaling).items() if name in names and value is not None}
    # Both sections, and the kind under both names: transformers before 5 reads the old one, before 4.43 `type` alone.
    return {
        "rope_theta": theta,
        OLD_FIELD: said | {"type": scaling.kind, "rope_theta": theta},
        NEW_FIELD: said | {"rope_theta": theta},
    }


def _kind(section: ConfigFields) -> Kind:
    name = "rope_type" if section.get("rope_type") is not None else "type"
    return cast(
        "Kind", section.choice(name, KINDS, default="default", remedy="Models with another cannot be computed.")
    )


def _factor(section: ConfigFields) -> float:
    value = section.positive_number("factor")
    if value < 1:
        raise section.refuse("factor", "a number of at least 1")
    return value


def _original_context(fields: ConfigFields, section: ConfigFields, max_context: int) -> int:
    beside = fields.optional_integer(_ORIGINAL)
    return beside or section.integer(_ORIGINAL, default=max_context)


def _read_yarn(section: ConfigFields, original: int, max_context: int) -> RopeScaling:
    implied = section.get("factor") is None and max_context > original
    factor = max_context / original if implied else _factor(section)
    fast, slow = section.positive_number("beta_fast", default=32.0), section.positive_number("beta_slow", default=1.0)
    if fast < slow:
        raise section.refuse("beta_fast", f"at least beta_slow, which is {slow} (without the fields they are 32 and 1)")
    attention, mscale, all_dim = (
        section.optional_number(name) for name in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if attention == 0:
        raise section.refuse("attention_factor", "a finite number above 0")
    truncate = section.flag("truncate", default="truncate" not in section)  # transformers takes null for false
    return RopeScaling("yarn", factor, original, attention, mscale, all_dim, fast, slow, truncate)


def _read_llama3(section: ConfigFields, original: int) -> RopeScaling:
    factor = _factor(section)
    low, high = (section.positive_number(f"{which}_freq_factor") for which in ("low", "high"))
    if high <= low:
        raise section.refuse("high_freq_factor", f"above low_freq_factor, which is {low}")
    return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
