"""What can be wrong with training data.

DataError               a ValueError: the data cannot be used as given
├── SourceError         a source, or something in one of its files, cannot be read
├── EncodingError       the tokenizer cannot be used, or does not fit the model
└── StoreError          a token store is missing, cut off or of another version

StoreNotWritten         an OSError: it is the storage that is wrong, not the data
"""


class DataError(ValueError):
    """Training data that cannot be used: says what was given, what is allowed, and what to do."""


class SourceError(DataError):
    """A path, a format, a file, a row or a column that cannot be read; names it."""


class EncodingError(DataError):
    """A tokenizer that cannot be read or has no end-of-sequence token, or ids that the model has no rows for."""


class StoreError(DataError):
    """A folder that is no whole token store."""


class StoreNotWritten(OSError):
    """A token store could not be written: names the folder, why, and what to do."""
