"""Trainable parts that methods put around the models, and what prepares the teacher's images."""

from tfkd.layers.adapter import Adapter
from tfkd.layers.spot_policy import SpotPolicy
from tfkd.layers.teacher_preprocessing import TeacherPreprocessing

__all__ = ["Adapter", "SpotPolicy", "TeacherPreprocessing"]
