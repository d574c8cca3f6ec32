"""Keep hidden states on disk, or compute them again: whichever is faster on the machine that runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachePlan:
    cached: bool
    reason: str


def cache_or_recompute(
    policy: str, width: int, prefix_blocks: int, bytes_per_value: int, flops: float, bandwidth: float
) -> CachePlan:
    """A block costs 24 D^2 FLOPs a token, a cached token D values: read where the disk beats that rate.

    `policy` "always" or "never" overrules. `flops` per second of the device, `bandwidth` of the disk in bytes/s.
    """
    if policy != "auto":
        return CachePlan(policy == "always", f"cache.policy is {policy}")
    if prefix_blocks == 0:
        return CachePlan(False, "no frozen block lies before the cut")
    break_even = flops * bytes_per_value / (24 * width * prefix_blocks)
    cached = bandwidth >= break_even
    compared = f"{bandwidth / 1e6:,.0f} MB/s of disk against a break-even of {break_even / 1e6:,.0f} MB/s"
    return CachePlan(cached, f"{'reading' if cached else 'computing again'} is faster: {compared}")
