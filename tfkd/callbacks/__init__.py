"""Keras callbacks for distillers."""

from tfkd.callbacks.diagnostics import Diagnostics
from tfkd.callbacks.epoch_pictures import EpochPictures
from tfkd.callbacks.tensorboard import picture_writer, show_in_tensorboard

__all__ = ["Diagnostics", "EpochPictures", "picture_writer", "show_in_tensorboard"]
