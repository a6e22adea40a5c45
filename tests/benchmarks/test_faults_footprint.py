"""Memory and descriptors of the processes that stay."""

import os
import subprocess
import sys

from benchmarks.faults.census import Process
from benchmarks.faults.footprint import Footprints


def test_only_those_that_every_look_found_are_told_of() -> None:
    footprints = Footprints()
    assert footprints.survivors() == []
    me, host = Process("gateway", os.getpid(), "here"), "here"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        footprints.take([me, Process("expert", child.pid, host)])
        child.communicate(b"\n")
    with open(os.devnull), open(os.devnull):  # for one of them the pipe to the child is gone
        footprints.take([me, Process("expert", child.pid, host)])
    (found,) = footprints.survivors()
    assert (found.kind, found.pid) == ("gateway", os.getpid())
    assert len(found.memory_mib) == 2
    assert min(found.memory_mib) > 1
    assert found.descriptors[1] == found.descriptors[0] + 1
