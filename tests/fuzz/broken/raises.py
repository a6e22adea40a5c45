"""A target with a fault behind letters that no fuzzer guesses at once."""


def one(data: bytes) -> None:
    if data[1:2] == b"B" and data[2:3] == b"u" and data[3:4] == b"g":
        raise KeyError("found")
