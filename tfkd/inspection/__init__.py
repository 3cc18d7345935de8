"""What is looked at before and during training, and what it says."""

from tfkd.inspection.check_result import CheckResult

__all__ = ["CheckResult"]
