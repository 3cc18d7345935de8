"""Image data sets from TFDS as pipelines whose every batch is known beforehand."""

from tfkd.data.loading import Data, load
from tfkd.data.sources import available

__all__ = ["Data", "available", "load"]
