"""A field that holds a number of copies, or the range in which it may move."""

from typing import Annotated, Any

from pydantic import model_validator

from spec.fields import Count
from spec.rules import Allowed, is_whole
from spec.section import Section

REPLICAS = Allowed("a whole number of at least 1, or {min: …, max: …} with min at most max")


class Replicas(Section):
    """How many copies run: a range, in which the load decides. A plain number n means {min: n, max: n}."""

    min: Count
    """The fewest."""
    max: Count
    """The most."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if is_whole(value, 1):
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
