"""All-to-all in the background: rows travel to the ranks that hold their experts, and back.

N rows sent, R rows received, D model dim, G ranks of a group.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


class PendingExchange:
    """Rows on their way."""

    def __init__(self, received_RD: Tensor, sent_ND: Tensor, work: dist.Work) -> None:
        self._received_RD = received_RD
        self._sent_ND = sent_ND  # read until all is done
        self._work = work

    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return self._work.is_completed()

    def wait(self) -> Tensor:
        """Returns what this rank gets, [R, D], in the order of the ranks.

        Raises:
            RuntimeError: A rank of the group is gone, or did not take part within the group's time-out.
        """
        self._work.wait()
        return self._received_RD


def start_exchange(
    rows_ND: Tensor,
    sent: Sequence[int],
    received: Sequence[int],
    group: dist.ProcessGroup,
    into: Tensor | None = None,
) -> PendingExchange:
    """Begins to send each rank of a group its rows.

    Args:
        rows_ND: The rows for the group's first rank, then those for its second, and so on.
        sent: How many rows go to each rank.
        received: How many come from each; what those ranks have in their `sent`.
        into: Where to write what is received, [R, D]; None: new memory.
    """
    assert rows_ND.shape[0] == sum(sent), f"{rows_ND.shape[0]} rows, but {sent} are to be sent"
    received_RD = rows_ND.new_empty(sum(received), *rows_ND.shape[1:]) if into is None else into
    assert received_RD.is_contiguous(), "what is received is written as it comes"
    rows_ND = rows_ND.contiguous()
    work = dist.all_to_all_single(received_RD, rows_ND, list(received), list(sent), group=group, async_op=True)
    assert work is not None
    return PendingExchange(received_RD, rows_ND, work)


def start_counts(counts_GN: Tensor, group: dist.ProcessGroup) -> PendingExchange:
    """Sends row g of `counts_GN` to rank g of the group; what is received are the rows that came to this one, [G, N].

    Whoever receives rows has to know how many: gloo and NCCL do not look, and would give garbage.
    """
    equal = [1] * counts_GN.shape[0]
    return start_exchange(counts_GN, equal, equal, group)
