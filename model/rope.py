"""Rotary position embedding, in the rotate-half layout of Hugging Face checkpoints.

Shapes: T tokens, H heads (query and key heads side by side), S head dim, P positions in the table.

A head's dimension d (d < S/2) is turned together with dimension d + S/2 by the angle position * theta^(-2d/S):
    out[d]       = x[d]       * cos - x[d + S/2] * sin
    out[d + S/2] = x[d + S/2] * cos + x[d]       * sin
With x rolled by S/2 and the first half of sin negated once, in the table, that is x * cos + rolled * signed_sin: three
torch calls for all query and key heads of a layer. Worked example, S = 4: x = [a, b, c, d], rolled = [c, d, a, b],
signed_sin = [-s0, -s1, s0, s1], so out[0] = a * c0 - c * s0 and out[2] = c * c0 + a * s0.

A scaled embedding (`model.rope_scaling`) has other frequencies in place of theta^(-2d/S). They are computed in the
order in which transformers computes them, so that both agree bit for bit.
"""

import math

import torch
from torch import Tensor

from model.rope_scaling import UNSCALED, RopeScaling


class RotaryTable:
    """cos and signed sin of every position in [0, max_context), computed in float32 and grown as positions are used."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        max_context: int,
        *,
        scaling: RopeScaling = UNSCALED,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        assert head_dim % 2 == 0, f"head_dim is {head_dim}, but rotary embedding turns pairs of dimensions"
        self.max_context = max_context
        self._dtype = dtype
        self._frequencies = frequencies(head_dim, theta, scaling).to(device)  # [S/2]
        self._magnitude = magnitude(scaling)
        self._table_PS2 = self._compute(0, 0)  # [P, 2 * S]: cos, then signed sin

    @property
    def num_positions(self) -> int:
        """How many positions are in the table so far."""
        return self._table_PS2.shape[0]

    def rows(self, positions_T: torch.Tensor, *, stop: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """cos_TS and signed_sin_TS at each position, for `apply_rope_`; the same for every layer of a step.

        positions_T are int64 (or int32), on the table's device. `stop` is a bound that is above every position, for
        who knows it: without it the largest position is read from the tensor, which on a GPU waits for the device.
        Raises ValueError for a position at or above max_context.
        """
        if stop is None:
            stop = int(positions_T.max()) + 1 if positions_T.numel() else 0
        self.grow(stop)
        cos_TS, signed_sin_TS = self._table_PS2.index_select(0, positions_T).chunk(2, dim=-1)
        return cos_TS, signed_sin_TS

    def grow(self, num_positions: int) -> None:
        """Make sure that positions [0, num_positions) are in the table. Raises ValueError above max_context."""
        if num_positions > self.max_context:
            raise ValueError(
                f"position {num_positions - 1} was asked for, but the model's context ends at {self.max_context}; "
                "shorten the prompt or ask for fewer tokens."
            )
        if num_positions > self.num_positions:
            # At least doubling keeps the cost of growing one position at a time constant on average.
            stop = min(max(num_positions, 2 * self.num_positions, 1024), self.max_context)
            self._table_PS2 = torch.cat((self._table_PS2, self._compute(self.num_positions, stop)))

    def _compute(self, start: int, stop: int) -> torch.Tensor:
        positions_P1 = torch.arange(start, stop, dtype=torch.float32, device=self._frequencies.device).unsqueeze(1)
        angles = positions_P1 * self._frequencies
        cos, sin = angles.cos() * self._magnitude, angles.sin() * self._magnitude
        return torch.cat((cos, cos, -sin, sin), dim=-1).to(self._dtype)


def apply_rope_(x_THS: torch.Tensor, cos_TS: torch.Tensor, signed_sin_TS: torch.Tensor) -> None:
    """Turn each token's heads by its position, in place, with the rows that `RotaryTable.rows` gave.

    Query and key heads can be one tensor [T, H + G, S], a view of the projection's output.
    """
    rolled_THS = x_THS.roll(x_THS.shape[-1] // 2, dims=-1)
    x_THS.mul_(cos_TS.unsqueeze(1)).addcmul_(rolled_THS, signed_sin_TS.unsqueeze(1))


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Returns the angle per position of each pair of dimensions, [S/2], in float32."""
    wavelengths = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # over 2 pi
    plain = 1.0 / wavelengths
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "yarn":
        divided_share = _yarn_ramp(head_dim, theta, scaling)
        kept_share = 1 - divided_share
        return 1.0 / (scaling.factor * wavelengths) * (1 - kept_share) + plain * kept_share
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    return plain  # within the context `dynamic` is the same


def magnitude(scaling: RopeScaling) -> float:
    """Returns what cos and sin are multiplied by."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _yarn_growth(scaling.factor, scaling.mscale) / _yarn_growth(scaling.factor, scaling.mscale_all_dim)
    return _yarn_growth(scaling.factor, 1.0)


def _yarn_growth(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_ramp(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Returns which share of each frequency is divided, [S/2]: 0 where it is fast, 1 where it is slow."""
    low, high = (
        head_dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step is a very steep ramp
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_context / wavelengths
    kept_share = (turns - low) / (high - low)
    between = (1 - kept_share) * plain / scaling.factor + kept_share * plain
    slow = wavelengths > scaling.original_context / low
    fast = wavelengths < scaling.original_context / high
    return torch.where(slow, plain / scaling.factor, torch.where(fast, plain, between))
