"""llama.cpp's RPC servers, by their names: HOST:PORT as a person types it, and which of them still answer.

llama.cpp ends its own process when a server does not answer, and does not say which one; here is who can tell. Opens a
connection and closes it again, which such a server takes for a client that has left. Knows nothing of what is computed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Final

from yarn_gguf.errors import ResourceError, UsageError

PATIENCE: Final = 5.0  # seconds that a machine has to take a connection
_NAME: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+):(?P<port>\d{1,5})")


def endpoints(texts: Sequence[str]) -> tuple[str, ...]:
    """`["a:1,b:2", "c:3"]` -> `("a:1", "b:2", "c:3")`, as llama.cpp reads them: a name or an IPv4 address; a port."""
    found: list[str] = []
    for text in (part.strip() for each in texts for part in each.split(",")):
        match = _NAME.fullmatch(text)
        if match is None or not 0 < int(match["port"]) < 1 << 16:
            raise UsageError(f"--rpc {text!r}: HOST:PORT is needed, such as 192.168.0.2:50052", code="rpc_name")
        if text in found:
            raise UsageError(f"--rpc names {text} twice; a server serves one client at a time", code="rpc_name")
        found.append(text)
    return tuple(found)


def why_not(endpoint: str) -> str | None:
    """Why nobody takes a connection there; None where somebody does."""
    host, port = endpoint.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def check(servers: Sequence[str]) -> None:
    """Raises for the first that takes no connection, before anybody waits for it."""
    for endpoint in servers:
        if (why := why_not(endpoint)) is not None:
            text = f"no RPC server answers at {endpoint}: {why}; start one there: ggml-rpc-server -H 0.0.0.0 -p PORT"
            raise ResourceError(text, code="rpc_unreachable")


def gone(servers: Sequence[str]) -> str:
    """Of whom a computation has lost, in words that go before what the process itself said; empty without servers."""
    lost = [f"{endpoint} ({why})" for endpoint, why in ((each, why_not(each)) for each in servers) if why is not None]
    if lost:
        return f"RPC server {', '.join(lost)} went away: "
    return f"with RPC servers {', '.join(servers)}, which answer: " if servers else ""
