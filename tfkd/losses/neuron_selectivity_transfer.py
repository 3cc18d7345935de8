"""NST: where each channel is active, as a distribution (Huang and Wang, 2017)."""

import keras
from keras import ops

from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import channel_products, match_sizes, normalize, positions_first


def mean_discrepancy(student_map, teacher_map):
    """Squared maximum mean discrepancy of the channels, polynomial kernel, per sample.

    Args:
        student_map: Float32 tensor `(batch, height, width, channels)`.
        teacher_map: Float32 tensor `(batch, height, width, channels)`; the larger of both maps
            is pooled to the size of the smaller, and the channels may differ.

    Returns:
        A tensor `(batch,)`: `mean (tᵀt')² + mean (sᵀs')² − 2 mean (sᵀt)²` over pairs of channels,
        each a vector over the positions, of L2 norm 1.
    """
    student_map, teacher_map = match_sizes(student_map, teacher_map)
    _, height, width, channels = student_map.shape
    if height * width <= max(channels, teacher_map.shape[-1]):
        # The same number: mean (sᵀt)² is the inner product of the means of s sᵀ and of t tᵀ. It
        # is cheaper where there are no more positions than channels.
        difference = _mean_outer_product(student_map) - _mean_outer_product(teacher_map)
        return ops.sum(ops.square(difference), axis=(1, 2))
    student_products = channel_products(student_map, student_map)
    teacher_products = channel_products(teacher_map, teacher_map)
    both_products = channel_products(student_map, teacher_map)
    student_norms, teacher_norms = _norms(student_products), _norms(teacher_products)
    return (
        _mean_kernel(teacher_products, teacher_norms, teacher_norms)
        + _mean_kernel(student_products, student_norms, student_norms)
        - 2.0 * _mean_kernel(both_products, student_norms, teacher_norms)
    )


def _mean_outer_product(features):
    """Mean of `v vᵀ` over the channels of a map: `(batch, positions, positions)`."""
    vectors = normalize(positions_first(features), axis=1)
    return ops.matmul(vectors, ops.transpose(vectors, (0, 2, 1))) / vectors.shape[2]


def _norms(products):
    """Norms of the channels, from their products with themselves; at least 1e-12, not 0."""
    squared = ops.diagonal(products, axis1=1, axis2=2)
    return ops.maximum(ops.sqrt(ops.where(squared > 0, squared, 1.0)), 1e-12)


def _mean_kernel(products, left_norms, right_norms):
    """Mean over pairs of channels of the squared cosine, per sample."""
    # Dividing the products is much cheaper than dividing the maps.
    cosines = products / left_norms[:, :, None] / right_norms[:, None, :]
    return ops.mean(ops.square(cosines), axis=(1, 2))


@keras.saving.register_keras_serializable(package="tfkd")
class NeuronSelectivityTransfer(DistillationLoss):
    """Maximum mean discrepancy between the channels of two maps.

    `Σ_spots mean_i [mean k(t, t') + mean k(s, s') − 2 mean k(s, t)]` over pairs of channels, with
    `k(a, b) = (aᵀb)²` and every channel of a map `(batch, height, width, channels)` a vector over
    the positions, of L2 norm 1. The channels may differ; where the sizes do, the larger map is
    average-pooled to the smaller. Samples are not compared with each other.

    Args:
        weight: Number. Defaults to 50, as in the CRD benchmark and the spot-adaptive study.
        spots: Defaults to `"stages"`: every stage but the stem and the pooled vector.

    Deviations: none of the published polynomial kernel (degree 2, constant 0); the paper's other
    kernels are left out. Maps with no more positions than channels are compared through their
    position-by-position matrices, which gives the same number.

    Example:
    ```python
    loss = tfkd.losses.NeuronSelectivityTransfer()
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Like What You Like: Knowledge Distill via Neuron Selectivity
          Transfer](https://arxiv.org/abs/1707.01219), section 4.
        - Weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "nst"
    spots = "stages"
    tap_rank = 4

    def __init__(self, weight=50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        return masked_mean(mean_discrepancy(student_tap, teacher_tap), sample_mask)
