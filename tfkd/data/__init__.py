"""Image data sets as pipelines whose every batch is known beforehand."""

from tfkd.data.arrays import Arrays
from tfkd.data.dataset import Data
from tfkd.data.loading import load
from tfkd.data.sources import available, register

__all__ = ["Arrays", "Data", "available", "load", "register"]
