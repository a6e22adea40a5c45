"""What can be wrong with a model that a user gives.

ModelError                  a ValueError: the model cannot be used as it is
├── ConfigError             config.json or generation_config.json is missing, unreadable or not supported
└── CheckpointError         the weights; see checkpoint/errors.py for its branches
"""


class ModelError(ValueError):
    """A model directory that cannot be used: where the problem is, what was found, and what to do about it.

    All three are kept in `args`, so that the error survives pickling (Ray sends errors between processes).
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} {self.remedy}"


class ConfigError(ModelError):
    """A config.json that is missing, is not JSON, or holds a value that is not supported."""
