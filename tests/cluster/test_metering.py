"""From counters to loads."""

import pytest

from cluster.metering import ExpertMeter
from cluster.scaling import Load, Rules, decide


def figures(uptime_s: float, busy_s: float, rows: int, queue: int = 0) -> dict[str, float]:
    return {"loaded": 1.0, "uptime_s": uptime_s, "busy_s": busy_s, "rows_total": rows, "queue": queue}


def test_the_load_is_what_happened_since_the_last_reading() -> None:
    meter = ExpertMeter()
    assert meter.read({"loaded": 0.5}) is None
    assert meter.read(figures(10.0, 3.0, 1000)) is None
    assert meter.read(figures(15.0, 7.0, 1800)) == Load(pytest.approx(0.8))  # pyright: ignore[reportArgumentType]
    assert meter.read(figures(20.0, 7.0, 1800)) == Load(0.0)


def test_waiting_rows_count_by_the_time_that_they_will_take() -> None:
    meter = ExpertMeter()
    meter.read(figures(10.0, 1.0, 1000))
    load = meter.read(figures(15.0, 6.0, 2000, queue=2000))  # 1000 rows took 5 s, so 2000 take two intervals
    assert load == Load(1.0, pytest.approx(2.0))  # pyright: ignore[reportArgumentType]


def test_another_process_under_the_same_name_is_measured_anew() -> None:
    meter = ExpertMeter()
    meter.read(figures(100.0, 50.0, 9000))
    assert meter.read(figures(2.0, 0.5, 10)) is None
    assert meter.read(figures(4.0, 1.5, 20)) == Load(pytest.approx(0.5))  # pyright: ignore[reportArgumentType]


def test_an_unchanged_snapshot_says_the_same_again() -> None:
    meter = ExpertMeter()
    meter.read(figures(1.0, 0.5, 10))
    assert meter.read(figures(1.0, 0.5, 10)) is None
    load = meter.read(figures(2.0, 0.75, 20))
    assert load == Load(pytest.approx(0.25))  # pyright: ignore[reportArgumentType]
    assert meter.read(figures(2.0, 0.75, 20)) == load


def test_a_part_shrinks_though_it_is_asked_more_often_than_it_is_measured() -> None:
    rules = Rules(fewest=1, most=2, target_utilization=0.5, downscale_delay_s=3)
    meters, history, num_replicas = [ExpertMeter(), ExpertMeter()], (), 2
    for half_s in range(2, 20):  # both are measured once a second, at the same moment, and read twice as often
        read = [meter.read(figures(half_s // 2, 1.0, 100)) for meter in meters[:num_replicas]]
        loads = [load for load in read if load is not None]
        decision = decide("shard 0", num_replicas, loads, rules, history, half_s / 2)
        num_replicas, history = decision.num_replicas, decision.history
    assert num_replicas == 1
