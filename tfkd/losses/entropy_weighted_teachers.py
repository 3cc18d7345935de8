"""EBKD: teachers that are certain count more (Kwon et al., 2020)."""

import keras
from keras import ops

from tfkd.losses.weighted_teachers import WeightedTeachers


@keras.saving.register_keras_serializable(package="tfkd")
class EntropyWeightedTeachers(WeightedTeachers):
    """Several teachers, each weighted by how certain it is of a sample.

    `temperature² / K · mean_i Σ_k (1 − H_ik / Σ_j H_ij) · KL(softmax(t_ik / temperature) ‖
    softmax(s_i / temperature))`, on logits `(batch, classes)` of the student and of `K` teachers.
    `H_ik` is the entropy of teacher `k`'s prediction, not softened.

    Args:
        temperature: Positive number or schedule. Defaults to 4, as in the published code.
        weight: Number or schedule. Defaults to 1, next to the cross-entropy at 1, as published.
        spots: Defaults to `"teachers"`: the logits of every teacher.

    Raises:
        UsageError: When it is built, if there is one teacher only.

    Deviations: none from the code. Its weights add up to `K − 1`, and are divided by `K`. Where
    all teachers are certain beyond rounding, all count alike.

    Example:
    ```python
    loss = tfkd.losses.EntropyWeightedTeachers()
    value = loss([student_logits] * 2, [teacher_logits, 0.5 * teacher_logits])
    ```

    References:
        - [Adaptive Knowledge Distillation Based on
          Entropy](https://ieeexplore.ieee.org/document/9054698), as in the
          [code of CA-MKD](https://github.com/Rorozhl/CA-MKD).
    """

    id = "ebkd"

    def teacher_weights(self, student_logits, teacher_logits, labels, masks):
        """Returns the weights `(batch, teachers)`; see the class."""
        logs = ops.log_softmax(ops.stack(teacher_logits, axis=1))
        entropies = -ops.sum(ops.exp(logs) * logs, axis=-1)
        total = ops.sum(entropies, axis=1, keepdims=True)
        count = len(teacher_logits)
        shares = entropies / ops.where(total > 0, total, ops.ones_like(total))
        shares = ops.where(total > 0, shares, ops.full_like(shares, 1 / count))
        return (1 - shares) / count
