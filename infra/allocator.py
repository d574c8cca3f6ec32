"""What glibc does with large blocks that are freed: below a threshold, which it raises by itself to 32 MiB, they stay.

The sums and heads of every adapter are such blocks. A run held more of them with every adapter of its stream, in pieces
between what lives longer (docs/decisions/1101)."""

import ctypes

LARGE = 4 << 20
VARIABLE = "MALLOC_MMAP_THRESHOLD_"
"""Says the same to a process that is started; one that runs has read it."""
_M_MMAP_THRESHOLD = -3


def return_large_blocks() -> bool:
    """Give blocks of 4 MiB and more back as soon as they are freed; False where the C library cannot be told so."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
