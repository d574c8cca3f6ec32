"""JSON whose bytes can be hashed and signed; apart from the blobs, for whoever needs no S3."""

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """Equal values give equal bytes: sorted keys, no blanks, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
