"""What every test shares: one thread per process, and a seed that is printed so that a failure can be repeated."""

import os
import random
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is first imported

import pytest
from hypothesis import settings

SEED_VARIABLE = "MANTA_TEST_SEED"
SESSION_SEED = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))

settings.register_profile("manta", deadline=None, print_blob=True)  # shared cores make single examples slow at times
settings.load_profile("manta")

pytest_plugins = ["tests.integration.ray_fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--full`, for `make faults`."""
    parser.addoption("--full", action="store_true", help="also run the tests marked full: whatever takes long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests marked `full` out unless they are asked for."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header() -> str:
    """Names the seed of this run."""
    return f"random inputs: {SEED_VARIABLE}={SESSION_SEED}"


@pytest.fixture(autouse=True)
def enough_is_judged() -> Iterator[None]:
    """Fails a test if near-ties have excused more than half of what it asked the oracle about (tests/oracle.py)."""
    yield from judging()


def judging() -> Iterator[None]:
    """Ends with an AssertionError if most of what oracles were asked about meanwhile was excused."""
    asked, judged = _judged()
    yield
    num_asked, num_judged = _judged()
    share = f"{num_judged - judged} of {num_asked - asked} tokens were judged; try another seed, and look at the gates"
    assert 2 * (num_judged - judged) >= num_asked - asked, share


def _judged() -> tuple[int, int]:
    oracle = sys.modules.get("tests.oracle")  # it imports transformers, which few tests need
    return (oracle.tally.num_asked, oracle.tally.num_judged) if oracle is not None else (0, 0)


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed for a test's random inputs: new in every run, printed in the header, set with MANTA_TEST_SEED."""
    return SESSION_SEED
