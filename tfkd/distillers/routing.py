"""Routing: student and teacher as one network that switches between them at the spots."""

import keras
from keras import ops

from tfkd import taps
from tfkd.distillers.trainer import Untracked
from tfkd.layers import Adapter


class Routing(keras.layers.Layer):
    """Runs student and teacher side by side; features may switch networks at every spot.

    Both networks are cut at the spots `1 … m` into segments, and at each spot an adapter leads
    from the student to the teacher (`A`) and another one back (`B`). With the decision `a_j` of a
    sample at spot `j`, and `x_0` the image:

    ```
    s_j = student_segment_j(xs_{j−1})          t_j = teacher_segment_j(xt_{j−1})
    xs_j = (1 − a_j) · s_j + a_j · B_j(t_j)    xt_j = (1 − a_j) · A_j(s_j) + a_j · t_j
    logits = (1 − a_out) · student_tail(xs_m) + a_out · teacher_tail(xt_m)
    ```

    Both networks run in inference mode; only the adapters are trained, and only they are weights
    of this layer.

    Args:
        student: A functional `keras.Model`.
        teacher: A functional `keras.Model`.
        spots: List of `(student tap, teacher tap)`, in the order in which both networks compute
            them; may be empty.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        UsageError: If a network cannot be cut there; when it is built, if there is no adapter
            between two taps.
    """

    def __init__(self, student, teacher, spots, **kwargs):
        # Casting is up to the two models and the adapters.
        super().__init__(autocast=False, **kwargs)
        here, there = ([None, *side, None] for side in (zip(*spots) if spots else ((), ())))
        self._segments = Untracked(
            student=[taps.segment(student, *ends) for ends in zip(here, here[1:])],
            # The first one has been run when routing begins: see call().
            teacher=[taps.segment(teacher, *ends) for ends in zip(there[1:], there[2:])],
        )

    def build(self, student_shapes, teacher_shapes):
        """Creates the adapters.

        Args:
            student_shapes: List of the shapes of the student's taps, one per spot.
            teacher_shapes: List of the shapes of the teacher's.
        """
        self.to_teacher, self.to_student = (
            [self._adapter(*shapes) for shapes in zip(sources, targets)]
            for sources, targets in (
                (student_shapes, teacher_shapes),
                (teacher_shapes, student_shapes),
            )
        )

    def _adapter(self, source, target):
        adapter = Adapter(tuple(target[1:]), dtype=self.dtype_policy)
        adapter.build(tuple(source))
        return adapter

    def call(self, images, teacher_features, decisions, training=None):
        """Routes a batch.

        Args:
            images: The student's inputs.
            teacher_features: The teacher's features at the first spot, in inference mode; its
                logits where there is no spot. They do not depend on the decisions and are known
                from distillation.
            decisions: Tensor `(batch, spots + 1)`, 1 for the teacher's side and 0 for the
                student's; those of the logits come last.
            training: Whether the adapters run in training mode.

        Returns:
            Float32 logits `(batch, classes)`.
        """
        student = self._segments.student[0](images, training=False)
        teacher = teacher_features
        for spot, adapters in enumerate(zip(self.to_teacher, self.to_student)):
            to_teacher, to_student = adapters
            decision = decisions[:, spot]
            from_student = ops.cast(to_teacher(student, training=training), teacher.dtype)
            from_teacher = ops.cast(to_student(teacher, training=training), student.dtype)
            student, teacher = (
                _choose(decision, student, from_teacher),
                _choose(decision, from_student, teacher),
            )
            student = self._segments.student[spot + 1](student, training=False)
            teacher = self._segments.teacher[spot](teacher, training=False)
        student, teacher = (ops.cast(logits, "float32") for logits in (student, teacher))
        return _choose(decisions[:, -1], student, teacher)


def _choose(decision, of_student, of_teacher):
    """Mixes two tensors `(batch, ...)`: by decisions 0 the first one, by decisions 1 the other."""
    decision = ops.reshape(decision, (-1, *[1] * (len(of_student.shape) - 1)))
    decision = ops.cast(decision, of_student.dtype)
    return (1 - decision) * of_student + decision * of_teacher
