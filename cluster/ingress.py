"""How HTTP gets in: Serve's options for the spec's host and port, and what an existing Serve has instead."""

import os
import socket

from cluster.spec import ServiceSpec


def use_haproxy(enabled: bool) -> None:
    """Chooses Serve's ingress before Ray starts: HAProxy in front of the gateways, or Serve's own proxy in Python."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if enabled else "0"


def check_port_free(host: str, port: int) -> None:
    """Fails early, instead of after a minute of Serve trying.

    Raises:
        ValueError: Something listens there already.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"api.port: {port} was given, but {host}:{port} cannot be used ({error.strerror}); "
                "stop what listens there, or choose another with --port"
            ) from error


def start_serve(spec: ServiceSpec) -> None:
    """Starts Serve for this spec's host and port, on a cluster that has none."""
    from ray import serve  # takes a second to import, which a mistyped port need not wait for

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": spec.api.host, "port": spec.api.port, "request_timeout_s": None},
    )


