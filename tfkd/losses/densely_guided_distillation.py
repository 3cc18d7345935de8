"""DGKD: teacher and assistants, some left out at random (Son et al., 2021)."""

import keras
from keras import ops

from tfkd.errors import check_number
from tfkd.losses.knowledge_distillation import KnowledgeDistillation
from tfkd.losses.numerics import both_masks


@keras.saving.register_keras_serializable(package="tfkd")
class DenselyGuidedDistillation(KnowledgeDistillation):
    """The sum of the divergences from several teachers, of which each batch leaves some out.

    `temperature² · Σ_k kept_k · mean_i KL(softmax(t_ik / temperature) ‖ softmax(s_i / temperature))`,
    on logits `(batch, classes)` of the student and of the teachers. In training mode `drop` of the
    `kept_k` are 0 in each batch, any ones with equal chances, and the others 1; at least one is.

    Args:
        temperature: Positive number or schedule. Defaults to 5, as in the published code.
        drop: Integer of at least 0. Defaults to 1, as in the published code.
        seed: Integer, the seed of the draws, or None.
        weight: Number or schedule. Defaults to 1.
        spots: Defaults to `"teachers"`: the logits of every teacher.
        **kwargs: Further arguments of `KnowledgeDistillation`.

    Raises:
        UsageError: If `drop` is no whole number of at least 0.

    Deviations: the published code averages over the classes, too, where this sums, and trains
    without the labels by default: `student_loss_weight=0.0` beside it.

    Example:
    ```python
    loss = tfkd.losses.DenselyGuidedDistillation()
    value = loss([student_logits] * 2, [teacher_logits, 0.5 * teacher_logits], training=True)
    ```

    References:
        - [Densely Guided Knowledge Distillation using Multiple Teacher
          Assistants](https://arxiv.org/abs/2009.08825), and its
          [code](https://github.com/wonchulSon/DGKD).
    """  # noqa: E501

    id = "dgkd"
    spots = "teachers"

    def __init__(self, temperature=5.0, drop=1, seed=None, weight=1.0, **kwargs):
        super().__init__(temperature, weight, **kwargs)
        check_number("drop", drop, "a whole number of at least 0", lambda x: x >= 0, int)
        self.drop = drop
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def draw_kept(self, teachers):
        """Draws which teachers take part.

        Args:
            teachers: Integer, their number.

        Returns:
            A float32 tensor `(teachers,)` of zeros and ones, the same on all replicas.
        """
        drawn = keras.random.uniform((teachers,), seed=self.seed_generator)
        ranks = ops.argsort(ops.argsort(drawn))
        return ops.cast(ranks >= min(self.drop, teachers - 1), "float32")

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Computes the unweighted loss; see `DistillationLoss.call`."""
        count = len(teacher_taps)
        if training and self.drop and count > 1:
            kept = self.draw_kept(count)
            everyone = ops.ones_like(student_taps[0][:, 0])
            masks = self.masks_of_spots(sample_mask, count)
            sample_mask = [both_masks(mask, kept[k] * everyone) for k, mask in enumerate(masks)]
        return super().call(student_taps, teacher_taps, labels, sample_mask, training)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "drop": self.drop, "seed": self.seed}
