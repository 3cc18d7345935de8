"""Image data sets from TFDS as pipelines whose every batch is known beforehand."""

from tfkd.data.dataset import Data
from tfkd.data.loading import load
from tfkd.data.sources import available

__all__ = ["Data", "available", "load"]
