"""SemCKD: attention pairs stages of both networks (Chen et al., 2021)."""

import functools

import keras
from keras import ops

from tfkd.errors import UsageError, check_positive_integer
from tfkd.layers.normalized_convolution import NormalizedConvolution
from tfkd.layers.torch_defaults import convolution, linear
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import (
    both_masks,
    flatten,
    keep_selected,
    match_sizes,
    normalize,
    selection,
)

#: The hidden layer of an embedding is this part of the batch, twice, and its output once.
REDUCTION = 4


@keras.saving.register_keras_serializable(package="tfkd")
class SemanticCalibration(DistillationLoss):
    """Mean squared errors between all pairs of stages, weighted by attention, per sample.

    `(1/n) Σ_samples (1/I) Σ_i Σ_j α_ij · mean (p_ij(s_i) − t_j)²` over the `I` taps of the student
    and all of the teacher, maps `(batch, height, width, channels)` of any shapes; of each pair
    the larger map is average-pooled first. The attention `α_i· = softmax_j (q_i · k_j)` of a
    sample compares its similarities to the samples of the batch, one row of `F Fᵀ` of the
    flattened tap: `q_i` and `k_j` are that row behind two dense layers, with a ReLU between them,
    divided by their L2 norms. A projection `p_ij` is a 1×1 convolution to twice the teacher's
    width, a 3×3 convolution, and a 1×1 convolution to its width, the first two with batch
    normalisation and ReLU. All are trained with the student.

    Args:
        batch_size: Integer of at least 4, the similarities that the embeddings take: those to the
            first samples of the batch of all replicas, with zeros where it has less. Defaults
            to 64, the batch of the published protocol.
        weight: Number. Defaults to 400, as published.
        spots: Defaults to `"stages"`. Every pair of taps of these is compared.

    Cost: one projection per pair of stages makes this the most expensive of the losses. For
    resnet32x4 and resnet8x4 they have 10.2 million parameters, where the student has 1.2 million;
    they grow with the square of the teacher's width, for resnet50 and mobilenet_v2 to 849 million.

    Raises:
        UsageError: If `batch_size` is too small.

    Deviations: the published code drops batches that are smaller than the others; here they are
    filled up with zeros, as are those of which samples are left out, and larger ones are not
    refused. Spots are given in pairs, so that both models have as many. With one mask per spot
    the samples count that all of them select.

    Example:
    ```python
    loss = tfkd.losses.SemanticCalibration()
    value = loss(
        [student_map, later_student_map], [teacher_map, later_teacher_map], training=True
    )
    ```

    References:
        - [Cross-Layer Distillation with Semantic Calibration](https://arxiv.org/abs/2012.03236),
          section 3, and its code, kept with that of
          [SimKD](https://github.com/DefangChen/SimKD).
    """

    id = "semckd"
    spots = "stages"
    tap_rank = 4
    relational = True

    def __init__(self, batch_size=64, weight=400.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_positive_integer("batch_size", batch_size)
        if batch_size < REDUCTION:
            raise UsageError(f"batch_size must be at least {REDUCTION}; received {batch_size}.")
        self.batch_size = batch_size
        self.queries = []
        self.keys = []
        self.projections = []

    def build(self, student_taps_shape, teacher_taps_shape):
        """Makes the embeddings of every spot, and the projections of all pairs."""
        super().build(student_taps_shape, teacher_taps_shape)
        for student_shape in student_taps_shape:
            self.projections.append(
                [self._projection(student_shape[-1], shape[-1]) for shape in teacher_taps_shape]
            )

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the embeddings of one spot."""
        width = self.batch_size // REDUCTION
        for embeddings in (self.queries, self.keys):
            embeddings.append(
                [
                    linear(self.batch_size, 2 * width, self.dtype_policy),
                    linear(2 * width, width, self.dtype_policy),
                ]
            )

    def _projection(self, channels, width):
        """Returns the layers that bring a student's map to the width of a teacher's."""
        steps = []
        for filters_in, size in ((channels, 1), (2 * width, 3)):
            step = NormalizedConvolution(2 * width, size, "relu", dtype=self.dtype_policy)
            step.build((None, None, None, filters_in))
            steps.append(step)
        return [*steps, convolution(2 * width, width, 1, self.dtype_policy, use_bias=False)]

    def similarities(self, features, selected):
        """Inner products of each sample with the first selected samples of the batch.

        Args:
            features: Float32 tensor `(batch, ...)`.
            selected: Float32 tensor `(batch,)` of zeros and ones.

        Returns:
            A tensor `(batch, batch_size)`.
        """
        features = keep_selected(flatten(features), selected)
        products = ops.matmul(features, ops.transpose(features))
        # The selected columns first, in their order: the keys are distinct, because a sort need
        # not keep the order of equal ones.
        batch = ops.shape(selected)[0]
        position = ops.arange(batch, dtype="int32")
        order = ops.argsort(ops.where(selected > 0, position, position + batch))
        products = ops.take(products, order, axis=1)
        padding = ops.zeros((batch, self.batch_size))
        padded = ops.concatenate([products, padding], axis=1)[:, : self.batch_size]
        return ops.reshape(padded, (batch, self.batch_size))

    def attention(self, student_taps, teacher_taps, selected):
        """Weighs the teacher's taps for each tap of the student, for every sample.

        Args:
            student_taps: List of float32 maps.
            teacher_taps: List of float32 maps.
            selected: Float32 tensor `(batch,)` of zeros and ones.

        Returns:
            A tensor `(batch, student taps, teacher taps)` whose rows add up to 1.
        """
        queries, keys = (
            ops.stack(
                [
                    normalize(second(ops.relu(first(self.similarities(tap, selected)))))
                    for tap, (first, second) in zip(taps, embeddings)
                ],
                axis=1,
            )
            for taps, embeddings in ((student_taps, self.queries), (teacher_taps, self.keys))
        )
        return ops.softmax(ops.matmul(queries, ops.transpose(keys, (0, 2, 1))), axis=-1)

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Compares all pairs of taps; see the class and `DistillationLoss.call()`."""
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        mask = functools.reduce(both_masks, masks)
        selected = selection(mask, student_taps[0])
        chosen = None if mask is None else selected
        teacher_taps = [ops.stop_gradient(tap) for tap in teacher_taps]
        attention = self.attention(student_taps, teacher_taps, selected)
        total = 0.0
        for i, student in enumerate(student_taps):
            for j, teacher in enumerate(teacher_taps):
                source, target = match_sizes(student, teacher)
                for step in self.projections[i][j][:2]:
                    source = step(source, training=training, selected=chosen)
                difference = flatten(self.projections[i][j][2](source) - target)
                difference = keep_selected(difference, selected)
                total += attention[:, i, j] * ops.mean(ops.square(difference), axis=-1)
        return masked_mean(total, mask) / len(student_taps)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "batch_size": self.batch_size}
