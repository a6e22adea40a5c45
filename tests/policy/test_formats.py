"""Formats that are spoken between processes go together: parts of two data planes cannot talk to each other."""

from cluster.plain import FORMAT, OLDEST_FORMAT
from transport.frames import MAGIC


def test_another_data_plane_is_another_format_of_what_is_stored() -> None:
    """Whoever changes the frames' format raises both formats too, and states the three here.

    Else a controller of the new Manta would take over parts of the old one, which its new parts cannot talk to.
    """
    assert (MAGIC, OLDEST_FORMAT, FORMAT) == (b"MNT3", 1, 1)
