"""Reads decisions and pieces out of a fuzzer's bytes, so that every input means something."""


class Material:
    """Bytes that are used up from the front; where they have ended, numbers are 0 and pieces are empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def number(self, below: int) -> int:
        """A number from 0 to `below` - 1, of one byte (two for larger ones)."""
        return int.from_bytes(self.take(1 if below <= 256 else 2), "little") % below

    def flag(self) -> bool:
        """Yes or no."""
        return bool(self.number(2))

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def piece(self) -> bytes:
        """A piece that says its own length in its first byte."""
        return self.take(self.number(256))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
