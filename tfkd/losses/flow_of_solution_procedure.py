"""FSP: how features flow from one stage to the next (Yim et al., 2017)."""

import keras
from keras import ops

from tfkd.errors import UsageError
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import both_masks, channel_products, flatten, match_sizes


def flow(first_map, second_map):
    """The flow matrix of two maps of one network.

    Args:
        first_map: Float32 tensor `(batch, height, width, channels)`.
        second_map: Float32 tensor `(batch, height, width, channels)`; the larger of both maps is
            pooled to the size of the smaller.

    Returns:
        A tensor `(batch, first channels, second channels)`: the mean over the positions of the
        products of channels.
    """
    first_map, second_map = match_sizes(first_map, second_map)
    positions = first_map.shape[1] * first_map.shape[2]
    return channel_products(first_map, second_map) / positions


def flow_distance(student_maps, teacher_maps):
    """Mean squared difference of the flow matrices of a pair of stages, per sample.

    Args:
        student_maps: Two float32 tensors `(batch, height, width, channels)`.
        teacher_maps: Two tensors of the teacher's, with the same channels.

    Returns:
        A tensor `(batch,)`.
    """
    return ops.mean(flatten(ops.square(flow(*student_maps) - flow(*teacher_maps))), axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class FlowOfSolutionProcedure(DistillationLoss):
    """Mean squared difference of flow matrices, one for each two consecutive spots.

    `Σ_j mean (G_j(s) − G_j(t))²` over samples and matrix entries, where
    `G_j = mean over positions of f_j f_{j+1}ᵀ` has shape `(channels of f_j, channels of f_{j+1})`,
    on maps `(batch, height, width, channels)`. Where the two sizes differ, the larger map is
    average-pooled to the smaller.

    Args:
        weight: Number. Defaults to 50, as in the CRD benchmark.
        spots: Defaults to `"stages"`: every stage but the stem and the pooled vector. At least
            two.

    With one mask per spot, a sample counts for a matrix where both of its spots select it.

    Raises:
        UsageError: When it is built, if there are fewer than two spots, or student and teacher
            differ in channels, which the flow matrices cannot.

    Deviations: the paper minimises this loss in a stage of its own, before training with
    cross-entropy alone; here it is one term of the loss throughout. As far as known
    (reconstructed) the benchmark does as the paper, and also pairs the stem with the first stage:
    name the spots to include it.

    Example:
    ```python
    loss = tfkd.losses.FlowOfSolutionProcedure()
    value = loss([student_map, later_student_map], [teacher_map, later_teacher_map])
    ```

    References:
        - [A Gift from Knowledge Distillation](https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html),
          section 3.
        - Form and weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """  # noqa: E501

    id = "fsp"
    spots = "stages"
    tap_rank = 4

    def __init__(self, weight=50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks that there are at least two spots, and the shapes at each."""
        if len(student_taps_shape) < 2:
            raise UsageError(
                f"Loss {self.name!r} compares consecutive maps, and received "
                f"{len(student_taps_shape)}: it needs at least two spots."
            )
        super().build(student_taps_shape, teacher_taps_shape)

    def build_spot(self, spot, student_shape, teacher_shape):
        """Checks that student and teacher have the same channels."""
        if student_shape[-1] != teacher_shape[-1]:
            raise UsageError(
                f"Loss {self.name!r} needs the same channels on both sides, and at spot {spot} the "
                f"student has {student_shape[-1]} and the teacher {teacher_shape[-1]}."
            )

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Compares each two consecutive spots; see the class and `DistillationLoss.call()`."""
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        teacher_taps = [ops.stop_gradient(tap) for tap in teacher_taps]
        total = 0.0
        for spot in range(len(student_taps) - 1):
            pair = slice(spot, spot + 2)
            distance = flow_distance(student_taps[pair], teacher_taps[pair])
            total += masked_mean(distance, both_masks(*masks[pair]))
        return total
