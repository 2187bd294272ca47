"""Fixtures of several modules."""

from tests.unit.lmstudio_home import lm, made, wheel

__all__ = ["lm", "made", "wheel"]
