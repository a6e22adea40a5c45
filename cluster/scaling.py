"""How many replicas a part should have. Pure: the loads and the time are given, and what was decided before.

The part asks for as many replicas as keep each of them busy for the target share of the time. It grows at once, and
shrinks only after it has asked for less during a whole delay, so that a pause between two bursts costs no replica.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# No decision more than doubles a part: what is measured while it is overloaded says little about what it needs.
MAX_GROWTH = 2
# Replicas leave only if the others then stay this far below the target; else a load at the edge would move them to and
# fro.
SLACK = 0.1
ROUNDING = 1e-9  # 1.4 / 0.7 is a little more than 2

# When so many replicas were asked for, as far as it still counts: numbers fall from entry to entry.
History = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What one replica that serves has to do.

    Args:
        utilization: The share of the last interval that it computed, 0 to 1.
        queued: What waits for it besides, in units of what one replica can do in an interval (or hold at once).
    """

    utilization: float
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What the service file says of one part.

    Args:
        fewest, most: Bounds of the number of replicas.
        target_utilization: How busy a replica should be, above 0 and below 1: nothing is ever busier than 1.
        downscale_delay_s: How long a part must ask for fewer replicas before any leaves.
    """

    fewest: int
    most: int
    target_utilization: float
    downscale_delay_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be now.

    Args:
        history: For the part's next decision.
        reason: In words, for the event log; empty if the number stays.
    """

    num_replicas: int
    history: History
    reason: str = ""


def decide(
    part: str, num_replicas: int, loads: Sequence[Load], rules: Rules, history: History, now_s: float
) -> Decision:
    """Decides how many replicas a part should have.

    Args:
        part: What to call it in the reason, such as `shard 3`.
        num_replicas: How many it is meant to have now. Those that still start count: they are asked for already.
        loads: Of each replica that serves. One that starts, or has not been measured yet, is left out.
        history: What the last decision gave; empty for the first one.
        now_s: Of any steady clock.
    """
    held = _within(num_replicas, rules)
    if held != num_replicas:
        reason = f"{part}: {rules.fewest} to {rules.most} replicas allowed, {num_replicas} given: {held} now"
        return Decision(held, _noted(history, held, rules, now_s), reason)
    if not loads:  # nothing is known: whatever there is stays, and none leaves soon
        return Decision(held, _noted(history, held, rules, now_s))
    demand = sum(load.utilization + load.queued for load in loads)
    history = history or ((now_s, held),)  # what was asked for before is not known; the number that runs, presumably
    history = _noted(history, _asked(demand, rules, SLACK), rules, now_s)
    wanted = _asked(demand, rules)
    if wanted > held:
        grown = min(wanted, held * MAX_GROWTH)
        return Decision(grown, history, f"{part}: {_busy(loads, rules)}: {held} → {grown} replicas")
    kept = min(held, history[0][1])
    if kept < held:
        why = f"{kept} would have done for {rules.downscale_delay_s:g} s"
        return Decision(kept, history, f"{part}: {_busy(loads, rules)}, and {why}: {held} → {kept} replicas")
    return Decision(held, history)


def _within(num_replicas: int, rules: Rules) -> int:
    return min(max(num_replicas, rules.fewest), rules.most)


def _asked(demand: float, rules: Rules, slack: float = 0.0) -> int:
    """The replicas that a demand (in replicas that never pause) asks for, within the bounds."""
    share = rules.target_utilization * (1 - slack)
    return _within(math.ceil(demand / share - ROUNDING), rules)


def _noted(history: History, num_replicas: int, rules: Rules, now_s: float) -> History:
    """The history with one more entry: without what is over, and what a later and larger number makes irrelevant."""
    since_s = now_s - rules.downscale_delay_s
    counts = ((time_s, number) for time_s, number in history if time_s > since_s and number > num_replicas)
    return (*counts, (now_s, num_replicas))


def _busy(loads: Sequence[Load], rules: Rules) -> str:
    mean = sum(load.utilization for load in loads) / len(loads)
    queued = sum(load.queued for load in loads)
    replicas = "1 replica" if len(loads) == 1 else f"{len(loads)} replicas"
    waits = f", with work for {queued:.1f} more waiting" if queued >= 0.1 else ""
    return f"{replicas} busy {mean:.2f} of the time{waits}, target {rules.target_utilization:g}"
