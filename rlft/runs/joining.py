"""Clusters that are asked before Ray is: whether one answers, whether it wants a token, and where the token is."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError

CONNECT_S = 30.0
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # takes an empty message; any caller may ask
TOKEN_HINT = "put the cluster's token in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
DASHBOARDS = ("http://", "https://")
FOUND_BY_RAY = ("auto", "local")


def check_address(address: str | None) -> str | None:
    """The address as it is; nobody is asked. Raises ConfigError for one that no run joins."""
    for name, given in (("--address", address), ("RAY_ADDRESS", None if address else os.environ.get("RAY_ADDRESS"))):
        if given:
            _check_form(given, name)
    return address


def _check_form(address: str, name: str) -> None:
    if address.startswith(DASHBOARDS):
        raise ConfigError(
            f"{name} {address}: that is the dashboard, which takes jobs: use `rlft submit FILE --address {address}`; "
            "a run joins the cluster itself, such as head:6379"
        )
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if address not in FOUND_BY_RAY and scheme in ("", "ray") and not (host and port.isdigit()):
        raise ConfigError(f"{name} {address}: no port is named; give HOST:PORT, such as {'ray://head:10001' if scheme else 'head:6379'}")


def prepare_to_join(address: str) -> None:
    """Ask the cluster at `address`, and take the token that there is where it wants one.

    Ray itself would try for minutes and print every try. It reads RAY_AUTH_MODE when it is imported: call this before. Where
    that is set, it stays.

    Raises:
        ConfigError: no address to join; nothing answers there, or something else; a token is missing or wrong.
    """
    _check_form(address, "--address")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto": Ray finds cluster and token itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ConfigError(f"cannot join a Ray cluster at {address}: {error}; check the address, such as head:6379") from error
    if address.startswith("ray://") or os.environ.get("RAY_USE_TLS") == "1":
        return  # asked in another way
    found = _ask(host, port, "")
    if found == "token":
        _take_token(address, host, port)
    elif found:
        raise ConfigError(
            f"cannot join a Ray cluster at {address}: no cluster answers there ({found}); a cluster's own port is 6379, and its dashboard "
            f"(8265) takes jobs: `rlft submit FILE --address http://{address}`"
        )


def is_cluster(address: str) -> bool:
    """Whether a cluster's own port is at `address`, as HOST:PORT."""
    host, _, port = address.rpartition(":")
    return port.isdigit() and _ask(host, port, "") in ("", "token")


def _take_token(address: str, host: str, port: str) -> None:
    mode, token = os.environ.get("RAY_AUTH_MODE"), _token()
    if mode == "disabled":
        raise ConfigError(f"{address} wants a token, and RAY_AUTH_MODE is {mode!r}: leave it unset, or set it to 'token'; {TOKEN_HINT}")
    if mode not in (None, "token"):
        return  # another way of Ray's
    if not token:
        raise ConfigError(f"{address} wants a token, and there is none: {TOKEN_HINT}")
    if _ask(host, port, token):
        raise ConfigError(f"{address} refuses the token: {TOKEN_HINT}")
    os.environ["RAY_AUTH_MODE"] = "token"


def _token() -> str:
    """Where Ray looks for it, in Ray's order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _ask(host: str, port: str, token: str) -> str:
    """Call a cluster. "" where it answers, "token" where it wants another token, else what is wrong."""
    import grpc

    options: list[Any] = [("grpc.enable_http_proxy", 0)]
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"{host}:{port}", options=options) as channel:
        alive = channel.unary_unary(ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            alive(b"", timeout=CONNECT_S, metadata=metadata)
        except grpc.RpcError as error:
            code: Any = error.code()  # type: ignore[attr-defined]
            return "token" if code is grpc.StatusCode.UNAUTHENTICATED else code.name.lower()
    return ""
