"""Independent, reproducible random streams from one seed and a name."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, e.g. ``derive_seed(0, "mnist", "references", 3)``."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
