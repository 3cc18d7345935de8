"""CC: how neighbouring samples of a batch relate (Peng et al., 2019)."""

import math

import keras
from keras import ops

from tfkd.layers.torch_defaults import linear
from tfkd.losses.distillation_loss import DistillationLoss
from tfkd.losses.numerics import flatten, keep_selected, selection


def correlation_distance(student_embedding, teacher_embedding, sample_mask=None):
    """Correlation of consecutive samples' differences between two embeddings.

    Args:
        student_embedding: Float32 tensor `(batch, size)`.
        teacher_embedding: Float32 tensor `(batch, size)`.
        sample_mask: Tensor `(batch,)` that selects samples, or None.

    Returns:
        A scalar.
    """
    selected = selection(sample_mask, student_embedding)
    difference = keep_selected(ops.abs(student_embedding - teacher_embedding), selected)
    if sample_mask is not None:
        # The selected rows first, in their order, the zeros of the others after them: so
        # consecutive selected samples become neighbours. The keys are distinct, because a sort
        # need not keep the order of equal ones.
        batch = ops.shape(selected)[0]
        position = ops.arange(batch, dtype="int32")
        order = ops.argsort(ops.where(selected > 0, position, position + batch))
        difference = ops.take(difference, order, axis=0)
    count = ops.sum(selected)
    correlation = ops.sum(difference[:-1] * difference[1:]) / ops.maximum(count - 1, 1.0)
    # With fewer than two rows no pair remains, and the sum is 0.
    return correlation * ops.mean(selected)


@keras.saving.register_keras_serializable(package="tfkd")
class CorrelationCongruence(DistillationLoss):
    """Correlation of the differences between two embeddings, over neighbours in the batch.

    `mean_{i < n} Σ_d δ_{i,d} δ_{i+1,d}` with `δ_i = |E_s s_i − E_t t_i|`, where `E_s` and `E_t`
    are dense layers with bias that embed the flattened taps, both trained with the student.

    Args:
        weight: Number. Defaults to 0.02, as in the CRD benchmark and the spot-adaptive study.
        embedding_size: Integer, the size of both embeddings. Defaults to 128, from the same.
        spots: Defaults to `"pooled"`.

    Deviations: the paper correlates all pairs of a batch in a Gaussian kernel; this is the form
    that both benchmarks use. 0 where fewer than two samples are selected.

    Example:
    ```python
    loss = tfkd.losses.CorrelationCongruence()
    value = loss([student_vector], [teacher_vector])
    ```

    References:
        - [Correlation Congruence for Knowledge Distillation](https://arxiv.org/abs/1904.01802),
          section 3.2.
        - Form and weight: the [CRD benchmark](https://arxiv.org/abs/1910.10699).
    """

    id = "cc"
    spots = "pooled"
    relational = True

    def __init__(self, weight=0.02, embedding_size=128, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.embedding_size = embedding_size
        self.student_embeddings = []
        self.teacher_embeddings = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the two embeddings."""
        for embeddings, shape in (
            (self.student_embeddings, student_shape),
            (self.teacher_embeddings, teacher_shape),
        ):
            features = math.prod(shape[1:])
            embeddings.append(linear(features, self.embedding_size, self.dtype_policy))

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares the embeddings of two taps; see the class."""
        return correlation_distance(
            self.student_embeddings[spot](flatten(student_tap)),
            self.teacher_embeddings[spot](flatten(teacher_tap)),
            sample_mask,
        )

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "embedding_size": self.embedding_size}
