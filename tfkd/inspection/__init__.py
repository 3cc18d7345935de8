"""Checks before training, and diagnostics during it."""

from tfkd.inspection.check_result import CheckResult

__all__ = ["CheckResult"]
