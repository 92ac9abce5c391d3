"""What tests of code that uses memo need; it may import anything, and nothing in memo imports it."""

from .clock import ManualClock

__all__ = ["ManualClock"]
