"""A few of hypothesis's examples at a time: between two handfuls, whoever asks looks at the clock."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed


def examples(strategy: Any, seed: int, num_examples: int) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A decorator: the check, called without arguments, is made of `num_examples` of what the strategy draws."""
    profile = settings(
        max_examples=num_examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    return lambda check: hypothesis_seed(seed)(profile(given(strategy)(check)))
