"""Whether a Ray cluster lets strangers in: whoever it does not ask for its token runs code on its hosts.

Asked as a stranger would ask, for that is what counts, not what this process or its environment says.
"""

import os

import grpc

ALLOW_VARIABLE = "MANTA_ALLOW_OPEN_RAY"
ANSWER_S = 10.0
CLIENT_SCHEME = "ray://"
# Calls that change nothing, of Ray's control plane and of its client server (`ray://`).
CONTROL_PLANE_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"
TLS_VARIABLES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")


class OpenCluster(ValueError):
    """A Ray cluster lets strangers in; says what that means, and how to start it otherwise."""


def refuse_open(address: str) -> None:
    """Does nothing if a cluster asks for a token, or if MANTA_ALLOW_OPEN_RAY=1 says that it need not.

    Args:
        address: HOST:PORT of its control plane, or ray://HOST:PORT.

    Raises:
        OpenCluster: It asks for none.
        ConnectionError: It does not answer.
    """
    if not open_allowed() and not asks_for_token(address):
        raise OpenCluster(refusal(address))


def open_allowed() -> bool:
    """Whether this process may use a cluster that lets strangers in."""
    return os.environ.get(ALLOW_VARIABLE) == "1"


def asks_for_token(address: str, token: str = "") -> bool:
    """Whether a cluster turns away who has no token, or this one.

    Args:
        address: HOST:PORT of its control plane, or ray://HOST:PORT.

    Raises:
        ConnectionError: It does not answer.
    """
    method = CLIENT_CALL if address.startswith(CLIENT_SCHEME) else CONTROL_PLANE_CALL
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with _channel(address.removeprefix(CLIENT_SCHEME)) as channel:
        call = channel.unary_unary(method)
        try:
            call(b"", timeout=ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue] - of a call, each has one
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ConnectionError(f"the Ray cluster at {address} does not answer: {code.name}") from error
            return code == grpc.StatusCode.UNAUTHENTICATED
        return False


def refusal(address: str) -> str:
    """Returns what to tell the user of a cluster that lets strangers in."""
    return (
        f"the Ray cluster at {address} runs without authentication: whoever reaches a port of its hosts, or is another "
        "user of them, runs code there, whatever API keys Manta asks for. Start it anew with a token. On its head:\n\n"
        "  (umask 077; ray get-auth-token --generate)\n"
        "  RAY_AUTH_MODE=token ray start --head\n\n"
        "On each other host, and wherever `manta` runs, have the same ~/.ray/auth_token (mode 600); then, on the hosts:"
        "\n\n  RAY_AUTH_MODE=token ray start --address=HEAD:6379\n\n"
        f"If nobody else can reach any port of it, {ALLOW_VARIABLE}=1 in the environment uses it as it is."
    )


def _channel(address: str) -> grpc.Channel:
    options = (("grpc.enable_http_proxy", 0),)
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options)
    ca, key, certificate = (_bytes_at(name) for name in TLS_VARIABLES)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options)


def _bytes_at(variable: str) -> bytes:
    """Reads the file that an environment variable names."""
    path = os.environ.get(variable)
    if not path:
        raise ValueError(f"RAY_USE_TLS is set, and {variable} is not; Ray needs both")
    with open(path, "rb") as file:
        return file.read()
