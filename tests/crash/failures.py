"""What the rig raises when it has found what it looks for."""

from __future__ import annotations


class Lost(Exception):
    """Something is not as it was acknowledged, or a call failed that should not."""
