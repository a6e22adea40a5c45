"""A field that holds a number of copies, or the range in which it may move."""

from typing import Annotated, Any, TypeGuard

from pydantic import model_validator

from spec.rules import Allowed, Rule, is_whole
from spec.section import Section

MAX_REPLICAS = 4096  # each is a process
REPLICAS = Allowed(f"a whole number from 1 to {MAX_REPLICAS}, or {{min: …, max: …}} with min at most max")


def is_replica_count(value: object) -> TypeGuard[int]:
    """True for a number of replicas."""
    return is_whole(value, 1, MAX_REPLICAS)


Number = Annotated[int, Rule(f"a whole number from 1 to {MAX_REPLICAS}", is_replica_count)]


class Replicas(Section):
    """How many copies run: a range, in which the load decides. A plain number n means {min: n, max: n}."""

    min: Number
    """The fewest."""
    max: Number
    """The most."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if is_replica_count(value):
            return {"min": value, "max": value}
        if not isinstance(value, dict | Replicas):
            raise REPLICAS.refuse()
        return value

    @model_validator(mode="after")
    def _in_order(self) -> "Replicas":
        if self.min > self.max:
            raise REPLICAS.refuse()
        return self

    @property
    def num(self) -> int:
        """How many to start with."""
        return self.min


ReplicaCount = Annotated[Replicas, REPLICAS]
ONE = Replicas(min=1, max=1)
