"""Random routings of rows, for property tests of what is done with them.

T rows, D model dim, E experts, K chosen experts per row.
"""

import torch
from hypothesis import strategies as st
from torch import Tensor

Routing = tuple[Tensor, Tensor, Tensor, int]


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Rows (each with values of its own) [T, D], weights and the experts chosen [T, K], how many experts there are."""
    num_experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, num_experts))
    num_rows = draw(st.integers(0, 12))
    choices = [draw(st.permutations(range(num_experts)))[:top_k] for _ in range(num_rows)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weights_TK = torch.rand(num_rows, top_k, dtype=torch.float64, generator=generator)
    rows_TD = torch.randn(num_rows, 3, dtype=torch.float64, generator=generator)
    return rows_TD, weights_TK, torch.tensor(choices, dtype=torch.int64).view(num_rows, top_k), num_experts
