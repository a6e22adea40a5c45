"""Draws among most of a vocabulary, for which logits are sorted, against listing what may be drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from attention import vocabulary
from attention.drawing import Filters, Workspace, draw_filtered
from attention.vocabulary import BlockedLogits
from tests.attention.test_sampling_vocabulary import ROWS, make_rows

CPU = torch.device("cpu")


def make_filters(seed: int, num_rows: int, vocab_size: int) -> Filters:
    """Filters of every kind, off in some rows."""
    generator = np.random.default_rng(seed + 1)
    pick = generator.choice
    return Filters(
        pick([1e-3, 0.7, 1.0, 30.0, 1e6], num_rows),
        pick([1, 2, max(1, vocab_size // 2), max(1, vocab_size - 1), vocab_size], num_rows),
        pick([1e-6, 0.5, 0.999, 1.0], num_rows),
        pick([0.0, 1e-9, 0.1, 1.0], num_rows),
    )


@settings(max_examples=200, deadline=None)
@given(*ROWS)
def test_sorting_draws_what_listing_draws(seed: int, num_rows: int, vocab_size: int, num_levels: int) -> None:
    logits_RV = torch.from_numpy(make_rows(seed, num_rows, vocab_size, num_levels))
    filters = make_filters(seed, num_rows, vocab_size)
    uniform_R = np.random.default_rng(seed + 2).random(num_rows)

    def draw(share: float) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "MANY", share)
            patch.setattr(vocabulary, "MOST", share)
            return draw_filtered(logits_RV, filters, uniform_R, Workspace(vocab_size, CPU))

    np.testing.assert_array_equal(draw(0.0), draw(2.0))


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(4096, 0.999, 0.0), (4095, 1.0, 0.0), (512, 1.0, 0.0), (4096, 1.0, 1e-9)]
)
def test_most_of_a_vocabulary_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    """A client may ask for it in each of its sequences: a list took a millisecond a row and step."""
    num_rows, vocab_size = 8, 4096
    logits_RV = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    listed, list_all = [0], BlockedLogits.reaching

    def reaching(self: BlockedLogits, floors_R: vocabulary.Floats, rows_R: vocabulary.Ints | None = None) -> object:
        found = list_all(self, floors_R, rows_R)
        listed.append(found.values_RM.shape[1])
        return found

    monkeypatch.setattr(BlockedLogits, "reaching", reaching)
    ones = np.ones(num_rows)
    filters = Filters(1e6 * ones, np.full(num_rows, top_k), top_p * ones, min_p * ones)
    ids_R = draw_filtered(logits_RV, filters, 0.5 * ones, Workspace(vocab_size, CPU))
    assert (ids_R >= 0).all()
    assert max(listed) <= vocab_size // 2
