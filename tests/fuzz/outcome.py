"""What a part of the campaign did and found."""

from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.http_cost import Cost


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: in words, and where its smallest input is kept."""

    words: str
    path: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """One target's or one property's run.

    Args:
        executions: Inputs that were tried.
        coverage: What of the code, or of the inputs that there are, was reached; in words.
        peak_mib: The most memory that its process held; None: not looked at.
        remarks: What else is worth telling, such as the worst of what was within the limits.
        costs: The dearest bodies: those that held others up longest, then those that took most memory.
    """

    name: str
    executions: int
    coverage: str
    seconds: float
    peak_mib: float | None = None
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
