"""CA-MKD: teachers that are right count more (Zhang et al., 2022)."""

import keras
from keras import ops

from tfkd.losses.weighted_teachers import WeightedTeachers


def confidences(logits, labels):
    """Weights of several predictions by how near each is to the label.

    Args:
        logits: List of float32 tensors `(batch, classes)`, at least two.
        labels: Integer tensor `(batch,)`.

    Returns:
        A tensor `(batch, predictions)`: `(1 − softmax_k(CE_ik)) / (K − 1)`, where `CE_ik` is the
        cross-entropy of prediction `k`. They add up to 1 for each sample.
    """
    logs = ops.log_softmax(ops.stack(logits, axis=1))
    is_label = ops.one_hot(labels, logs.shape[-1], dtype=logs.dtype)
    cross_entropies = -ops.sum(logs * is_label[:, None], axis=-1)
    return (1 - ops.softmax(cross_entropies)) / (len(logits) - 1)


@keras.saving.register_keras_serializable(package="tfkd")
class ConfidenceWeightedTeachers(WeightedTeachers):
    """Several teachers, each weighted by how right it is about a sample.

    `temperature² / K · mean_i Σ_k w_ik · KL(softmax(t_ik / temperature) ‖ softmax(s_i /
    temperature))` with `w_ik = (1 − softmax_k(CE(t_ik, y_i))) / (K − 1)`, on logits
    `(batch, classes)` of the student and of `K` teachers. `CE` is the cross-entropy of a teacher's
    prediction, not softened.

    It is the part of CA-MKD on logits; `camkd_features` is the one on features.

    Args:
        temperature: Positive number or schedule. Defaults to 4, as published.
        weight: Number or schedule. Defaults to 1, next to the cross-entropy at 1, as published.
        spots: Defaults to `"teachers"`: the logits of every teacher.

    Raises:
        UsageError: When it is built, if there is one teacher only; in training, if the labels are
            no classes.

    Deviations: none from the code. Its weights add up to 1, and are divided by `K` once more.

    Example:
    ```python
    loss = tfkd.losses.ConfidenceWeightedTeachers()
    value = loss([student_logits] * 2, [teacher_logits, 0.5 * teacher_logits], labels=labels)
    ```

    References:
        - [Confidence-Aware Multi-Teacher Knowledge
          Distillation](https://arxiv.org/abs/2201.00007), and its
          [code](https://github.com/Rorozhl/CA-MKD).
    """

    id = "camkd"
    needs_labels = True

    def teacher_weights(self, student_logits, teacher_logits, labels, masks):
        """Returns the weights `(batch, teachers)`; see the class."""
        return confidences(teacher_logits, labels) / len(teacher_logits)
