"""Trainable parts that methods put around the models."""

from tfkd.layers.adapter import Adapter

__all__ = ["Adapter"]
