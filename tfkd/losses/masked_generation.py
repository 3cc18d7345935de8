"""MGD: a part of the student's features generates the map (Yang et al., 2022)."""

import keras
from keras import layers, ops

from tfkd import runtime
from tfkd.errors import check_share
from tfkd.layers.torch_defaults import convolution
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, keep_selected, match_sizes, selection


@keras.saving.register_keras_serializable(package="tfkd")
class MaskedGeneration(DistillationLoss):
    """Squared distance to the teacher's map of what is generated from a part of the student's.

    `(1/n) Σ (g(m · a(s)) − t)²`, the sum over all features of a map
    `(batch, height, width, channels)`. `a` is a 1×1 convolution with bias to the teacher's width,
    where that differs; `m` zeroes channels of each sample at random; `g` is two 3×3 convolutions
    with bias and a ReLU between them. `a` and `g` are trained with the student. Where sizes
    differ, the larger map is average-pooled.

    Args:
        drop_rate: Number from 0 to 1, the probability of a channel to be zeroed, in training mode
            only. Defaults to 0.15, as published for classification.
        seed: Integer, the seed of the draws, or None.
        weight: Number. Defaults to 7e-5, as published for ImageNet.
        spots: Defaults to `"last_map"`.

    The convolutions are `18 · channels²` parameters of the teacher's width, 1.2 million for 256,
    and as many multiply-adds per position: on maps of 8×8 as much as a small student. They are no
    part of it.

    Deviations: sizes must be equal in the published code, which drops channels outside of
    training too, and does not scale up those that are left; here neither.

    Example:
    ```python
    loss = tfkd.losses.MaskedGeneration()
    value = loss([student_map], [teacher_map], training=True)
    ```

    References:
        - [Masked Generative Distillation](https://arxiv.org/abs/2205.01529), section 3, and its
          [code](https://github.com/yzd-v/cls_KD).
    """

    id = "mgd"
    spots = "last_map"
    tap_rank = 4

    def __init__(self, drop_rate=0.15, seed=None, weight=7e-5, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_share("drop_rate", drop_rate)
        self.drop_rate = drop_rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.aligners = []
        self.generators = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the alignment, where widths differ, and the generation of one spot."""
        student, teacher, dtype = student_shape[-1], teacher_shape[-1], self.dtype_policy
        same = student == teacher
        self.aligners.append(
            layers.Identity(dtype=dtype) if same else convolution(student, teacher, 1, dtype)
        )
        self.generators.append([convolution(teacher, teacher, 3, dtype) for _ in range(2)])

    def draw_kept(self, shape):
        """Draws which channels of each sample are kept.

        Args:
            shape: Shape of the aligned map, `(batch, height, width, channels)`.

        Returns:
            A float32 tensor `(batch, 1, 1, channels)` of zeros and ones.
        """
        drawn = runtime.draw_per_sample(
            lambda size: keras.random.uniform((size, 1, 1, shape[-1]), seed=self.seed_generator),
            shape[0],
        )
        return ops.cast(drawn >= self.drop_rate, "float32")

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        selected = selection(sample_mask, student_tap)
        generated = self.aligners[spot](keep_selected(student_tap, selected))
        if training:
            generated = generated * self.draw_kept(ops.shape(generated))
        first, second = self.generators[spot]
        generated = second(ops.relu(first(generated)))
        generated, teacher_tap = match_sizes(generated, teacher_tap)
        difference = keep_selected(generated - teacher_tap, selected)
        return masked_mean(ops.sum(ops.square(flatten(difference)), axis=-1), sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "drop_rate": self.drop_rate, "seed": self.seed}
