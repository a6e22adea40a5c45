"""A node, a router and two experts on real sockets, with a proxy before each of them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from attention.sizing import NodeSettings
from tests.attention.node_setup import TIMEOUT_S, start_node
from tests.transport.links import LinkProxy, proxy_thread
from transport.address import Address
from transport.table import RoutingTable

RECOVERY_S = 60.0


@dataclass(frozen=True)
class Proxied:
    """Where a gateway connects to, and the proxies: by the part before which they stand."""

    address: Address
    of_experts: list[LinkProxy]
    of_router: LinkProxy
    of_node: LinkProxy

    @property
    def proxies(self) -> list[LinkProxy]:
        """All of them, the node's last."""
        return [*self.of_experts, self.of_router, self.of_node]


@contextmanager
def service_behind_proxies(
    directory: Path, settings: NodeSettings, over_tcp: bool, answer_timeout_s: float
) -> Iterator[Proxied]:
    """Starts it; every connection between two parts goes through a proxy, over Unix sockets or over sealed TCP."""
    tcp_host = "127.0.0.1" if over_tcp else None
    with ExitStack() as stack:
        setup = stack.enter_context(start_node(directory, settings, tcp_host, RECOVERY_S, answer_timeout_s))
        replicas = [address for shard in setup.shards for address in shard.replicas]
        of_experts = stack.enter_context(proxy_thread(*replicas, over_tcp=over_tcp))
        setup.shards = tuple(
            replace(shard, replicas=(proxy.address,)) for shard, proxy in zip(setup.shards, of_experts, strict=True)
        )
        router = stack.enter_context(setup.router(recovery_timeout_s=RECOVERY_S, answer_timeout_s=answer_timeout_s))
        (of_router,) = stack.enter_context(proxy_thread(router.address, over_tcp=over_tcp))
        setup.node.update(RoutingTable(1, setup.shards, (of_router.address,)))
        assert setup.node.wait_ready(TIMEOUT_S)
        (of_node,) = stack.enter_context(proxy_thread(setup.node.address, over_tcp=over_tcp))
        yield Proxied(of_node.address, of_experts, of_router, of_node)
        setup.wait_idle()


@contextmanager
def again_and_again(act: Callable[[], None], pause_s: float = 0.0) -> Iterator[None]:
    """Does something to the links, such as a fault, again and again, in a thread; first after the pause."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(pause_s):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
