"""A target that takes 100 MiB for one kind of input, and gives it back."""


def one(data: bytes) -> None:
    if data[:1] == b"M":
        assert bytearray(b"\1") * (100 << 20)
