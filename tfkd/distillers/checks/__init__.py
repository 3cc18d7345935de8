"""Checks of models, labels and arguments, before training and as it starts."""

from tfkd.distillers.checks import arguments, labels, models

__all__ = ["arguments", "labels", "models"]
