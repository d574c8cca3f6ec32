"""Free ports on loopback, and whether something answers there."""

import random
import socket

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
# with the offset still below the kernel's own range of outgoing ports (32768 and up on Linux)
RANGE = range(12_000, 22_000)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that are free now and whose companion at +10000 is free too (SeaweedFS puts gRPC there)."""
    candidates = random.sample(RANGE, len(RANGE))
    found = (port for port in candidates if is_free(port) and is_free(port + GRPC_OFFSET))
    return [next(found) for _ in range(count)]


def answers(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
