"""The router end to end, its experts in the same process, against a naive loop over rows and experts.

T rows, D model dim, E experts, K chosen experts per row.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protos.dispatch_pb2 import Header
from tests.router.fleet import cut, layer_request, make_router, random_weights
from transport.base import OnReply, Peer
from transport.errors import CallError, PeerLost
from transport.table import ShardKey


@given(st.data())
def test_any_cut_of_the_experts_gives_the_naive_answer(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, num_experts))
    shards = cut(num_experts, data.draw(st.integers(1, num_experts)), data.draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    layers = [random_weights(num_experts, 8, 16, generator) for _ in range(2)]
    router = make_router(layers, top_k, shards)
    assert router.ready
    rows_TD = torch.randn(data.draw(st.integers(1, 9)), 8, generator=generator)
    layer = data.draw(st.integers(0, 1))
    request, answers = layer_request(layer, rows_TD)
    router.serve([request])
    assert torch.allclose(answers.rows, layers[layer].naive(rows_TD, top_k), atol=1e-5)
    assert sum(router.rows_per_expert) == rows_TD.shape[0] * top_k


def test_requests_that_come_together_are_answered_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    router = make_router(layers, 2, cut(4, 2, 1))
    asked = [layer_request(0, torch.randn(count, 8, generator=generator)) for count in (1, 4, 2)]
    router.serve([request for request, _ in asked])
    for request, answers in asked:
        assert torch.allclose(answers.rows, layers[0].naive(request.rows_TD, 2), atol=1e-5)


class Faulty:
    """A peer whose calls are lost (and with them the peer) or answered with something else, `times` times."""

    def __init__(self, peer: Peer, answer: Tensor | CallError, times: int) -> None:
        self.ready = True
        self.rows_in_flight = 0
        self.num_calls = 0
        self._peer, self._answer, self._times = peer, answer, times

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        self.num_calls += 1
        if self.num_calls > self._times:
            self._peer.call(header, rows_TD, on_reply)
            return
        self.ready = not isinstance(self._answer, PeerLost)
        on_reply(self._answer)

    def close(self) -> None:
        self._peer.close()


def test_rows_of_a_lost_replica_are_resent_and_the_answer_is_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    faulty: list[Faulty] = []

    def first_of_each_is_lost(key: ShardKey, peer: Peer) -> Peer:
        if any(made.key == key for made in faulty):  # pyright: ignore[reportAttributeAccessIssue]
            return peer
        faulty.append(Faulty(peer, PeerLost("killed"), times=1))
        faulty[-1].key = key  # pyright: ignore[reportAttributeAccessIssue]
        return faulty[-1]

    router = make_router(layers, 2, cut(4, 2, 2, num_replicas=2), first_of_each_is_lost)
    rows_TD = torch.randn(12, 8, generator=generator)
    for _ in range(2):
        request, answers = layer_request(0, rows_TD)
        router.serve([request])
        assert torch.allclose(answers.rows, layers[0].naive(rows_TD, 2), atol=1e-5)
    assert len(faulty) == 4
    assert all(peer.num_calls <= 1 for peer in faulty)
    assert any(peer.num_calls == 1 for peer in faulty)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(CallError("expert_unavailable", "gone for good"), "expert_unavailable"), (torch.zeros(1, 3), "internal")],
)
def test_a_part_that_fails_fails_its_request_once_and_no_other(
    answer: Tensor | CallError, code: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    router = make_router(layers, 4, cut(4, 1, 1), lambda key, peer: Faulty(peer, answer, times=1))
    rows_TD = torch.randn(3, 8, generator=generator)
    first, failed = layer_request(0, rows_TD)
    second, answered = layer_request(0, rows_TD)
    router.serve([first, second])
    assert failed.error.code == code
    assert torch.allclose(answered.rows, layers[0].naive(rows_TD, 4), atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), [(1, (2, 8)), (0, (2, 7)), (0, (0, 8)), (0, (2, 0))])
def test_a_malformed_request_fails_alone(layer: int, shape: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    router = make_router(layers, 2, cut(4, 2, 1))
    bad, refused = layer_request(layer, torch.zeros(shape))
    good, answered = layer_request(0, torch.randn(2, 8, generator=generator))
    router.serve([bad, good])
    assert refused.error.code == "invalid_request"
    assert f"layer {layer} and rows of shape {shape}; allowed: layers 0 to 0" in refused.error.message
    assert torch.allclose(answered.rows, layers[0].naive(good.rows_TD, 2), atol=1e-5)


def test_a_bad_routing_table_is_refused_and_the_old_one_stays(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    router = make_router(layers, 2, cut(4, 2, 1))
    with pytest.raises(ValueError, match="needed: each of 0 to 3"):
        router.update(cut(3, 1, 1))
    request, answers = layer_request(0, torch.randn(2, 8, generator=generator))
    router.serve([request])
    assert torch.allclose(answers.rows, layers[0].naive(request.rows_TD, 2), atol=1e-5)


def test_rows_in_bfloat16_against_float32(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = random_weights(4, 8, 16, generator)
    router = make_router([layer], 2, cut(4, 2, 1))
    rows_TD = torch.randn(2, 8, generator=generator).bfloat16()
    request, answers = layer_request(0, rows_TD)
    router.serve([request])
    assert torch.allclose(answers.rows, layer.naive(rows_TD.float(), 2), atol=1e-5)


def test_the_shard_that_answered_last_is_asked_first(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    asked: list[ShardKey] = []

    class Noting(Faulty):
        """Notes who is asked."""

        def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
            asked.append(self.key)  # pyright: ignore[reportAttributeAccessIssue]
            super().call(header, rows_TD, on_reply)

    def noting(key: ShardKey, peer: Peer) -> Peer:
        made = Noting(peer, PeerLost("never"), times=0)
        made.key = key  # pyright: ignore[reportAttributeAccessIssue]
        return made

    router = make_router(layers, 2, cut(4, 4, 2), noting)
    for _ in range(3):  # in this process the last that is asked answers last
        request, answers = layer_request(0, torch.randn(1, 8, generator=generator))
        router.serve([request])
        assert torch.allclose(answers.rows, layers[0].naive(request.rows_TD, 2), atol=1e-5)
    first, second = asked[:2]
    assert first != second
    assert asked == [first, second, second, first, first, second]


class Held(Faulty):
    """Keeps its calls until it is closed, which loses them."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer, PeerLost("removed"), times=0)
        self._kept: list[OnReply] = []

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        self._kept.append(on_reply)

    def close(self) -> None:
        self.ready = False
        for on_reply in self._kept:
            on_reply(PeerLost("removed"))


@pytest.mark.parametrize("after", [(1, 1), (4, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("before", [(2, 1), (4, 2)])
def test_rows_under_way_are_routed_anew_when_the_experts_are_cut_otherwise(
    before: tuple[int, int], after: tuple[int, int], seed: int
) -> None:
    """A slice of the old cut and one of the new cut may have the same experts and number, and hold other columns."""
    generator = torch.Generator().manual_seed(seed)
    layers = [random_weights(4, 8, 16, generator)]
    old, new = cut(4, *before), cut(4, *after)
    held = {entry.key for entry in old}
    router = make_router(layers, 2, old, lambda key, peer: Held(peer) if key in held else peer, later=new)
    request, answers = layer_request(0, torch.randn(5, 8, generator=generator))
    router.serve([request])
    assert not answers.received
    router.update(new)
    assert torch.allclose(answers.rows, layers[0].naive(request.rows_TD, 2), atol=1e-5)
