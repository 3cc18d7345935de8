"""HCL: the hierarchical context loss of ReviewKD (Chen et al., 2021)."""

from keras import ops

from tfkd.losses.distillation_loss import masked_mean
from tfkd.losses.numerics import adaptive_average_pool, flatten, keep_selected, selection


def hierarchical_context_loss(student_maps, teacher_maps, sample_mask=None):
    """Mean squared error of maps at several resolutions.

    Each pair of maps is compared as it is, with weight 1, and average-pooled to 4×4, 2×2 and 1×1
    where those are smaller, each with half the weight of the one before; the weights are divided
    by their sum.

    Args:
        student_maps: List of float32 tensors `(batch, height, width, channels)`.
        teacher_maps: List of tensors of the same shapes.
        sample_mask: Tensor `(batch,)`, or None.

    Returns:
        A scalar, the sum over the maps.

    Reference:
        - [Distilling Knowledge via Knowledge Review](https://arxiv.org/abs/2104.09044),
          section 3.3.
    """
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps):
        height = student.shape[1]
        sizes = [height, *(size for size in (4, 2, 1) if size < height)]
        weights = [2.0**-level for level in range(len(sizes))]
        difference = student - teacher
        difference = keep_selected(difference, selection(sample_mask, difference))
        for size, weight in zip(sizes, weights):
            pooled = (
                adaptive_average_pool(difference, (size, size)) if size < height else difference
            )
            error = ops.mean(ops.square(flatten(pooled)), axis=-1)
            total += weight / sum(weights) * masked_mean(error, sample_mask)
    return total
