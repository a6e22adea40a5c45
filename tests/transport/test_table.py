"""Which of two routing tables is the newer one."""

import random

from transport.table import Newest, RoutingTable


def test_an_older_table_never_replaces_a_newer_one(seed: int) -> None:
    """Whatever order they arrive in: of each controller a few, late, twice, out of turn."""
    tables = [RoutingTable(version, epoch=epoch) for epoch in (3, 7, 8) for version in range(6)] * 2
    random.Random(seed).shuffle(tables)
    newest = Newest()
    positions = [table.position for table in tables if newest.is_newer(table)]
    assert positions == sorted(set(positions))
    assert positions[-1] == (8, 5)


def test_a_later_controller_counts_anew() -> None:
    newest = Newest()
    assert newest.is_newer(RoutingTable(900, epoch=1))
    assert newest.is_newer(RoutingTable(1, epoch=2))
    assert not newest.is_newer(RoutingTable(901, epoch=1))
