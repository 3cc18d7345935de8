"""Trainable parts that methods put around the models, and the teacher's preprocessing."""

from tfkd.layers.adapter import Adapter
from tfkd.layers.attention_fusion import AttentionFusion
from tfkd.layers.auxiliary_learner import AuxiliaryLearner
from tfkd.layers.discriminator import Discriminator
from tfkd.layers.image_generator import ImageGenerator
from tfkd.layers.logit_attention import LogitAttention
from tfkd.layers.noise_generator import NoiseGenerator
from tfkd.layers.normalized_convolution import NormalizedConvolution
from tfkd.layers.patch_discriminator import PatchDiscriminator
from tfkd.layers.review_fusion import ReviewFusion
from tfkd.layers.spectral_convolution import SpectralConvolution
from tfkd.layers.spot_policy import SpotPolicy
from tfkd.layers.teacher_preprocessing import TeacherPreprocessing

__all__ = [
    "Adapter",
    "AttentionFusion",
    "AuxiliaryLearner",
    "Discriminator",
    "ImageGenerator",
    "LogitAttention",
    "NoiseGenerator",
    "NormalizedConvolution",
    "PatchDiscriminator",
    "ReviewFusion",
    "SpectralConvolution",
    "SpotPolicy",
    "TeacherPreprocessing",
]
