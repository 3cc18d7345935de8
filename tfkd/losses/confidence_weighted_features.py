"""The part of CA-MKD on features: maps that the teachers' classifiers can read."""

import keras
from keras import ops

from tfkd import taps
from tfkd.errors import UsageError
from tfkd.losses.confidence_weighted_teachers import confidences
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import flatten, keep_selected, match_sizes, selection
from tfkd.losses.softmax_regression_representation_learning import connector


def confidence_weighted_distances(student_maps, teacher_maps, through, labels):
    """Distances from several teachers' features, weighted by how right the student would be.

    Args:
        student_maps: List of float32 tensors `(batch, ...)`, the student's features as adapted to
            each teacher.
        teacher_maps: List of the teachers' features, of the same shapes.
        through: List of logits `(batch, classes)`, what each teacher's classifier makes of the
            adapted features.
        labels: Integer tensor `(batch,)`.

    Returns:
        A tensor `(batch,)`: `1/K · Σ_k w_ik · mean (s_ik − t_ik)²` with the `confidences()` `w` of
        `through`. Gradients flow through the weights too.
    """
    weights = confidences(through, labels)
    distances = [
        ops.mean(flatten(ops.square(student - teacher)), axis=-1)
        for student, teacher in zip(student_maps, teacher_maps)
    ]
    return ops.mean(weights * ops.stack(distances, axis=1), axis=1)


@keras.saving.register_keras_serializable(package="tfkd")
class ConfidenceWeightedFeatures(DistillationLoss):
    """Squared distances from several teachers' maps, weighted by what their classifiers would say.

    `1/K · mean_i Σ_k w_ik · mean (c_k(s_i) − t_ik)²` on maps `(batch, height, width, channels)`,
    with `w_ik = (1 − softmax_k(CE(z_k(c_k(s_i)), y_i))) / (K − 1)`. `c_k` is a connector to
    teacher `k`, a 1×1 convolution, batch normalisation and ReLU, trained with the student, and
    `z_k` that teacher's own classifier, frozen, of the mean over the positions. The larger of two
    maps is pooled to the size of the smaller. Gradients flow through the weights.

    It is the part of CA-MKD on features; `camkd` is the one on logits.

    Args:
        weight: Number or schedule. Defaults to 50, next to the cross-entropy and `camkd` at 1, as
            published.
        spots: Defaults to `"before_pooling"` of the student and of every teacher: the map that
            global average pooling makes the pooled vector of. Pairs name one tap of each teacher,
            such as `("stage3", "teacher1/stage3")`.

    Needs the teachers' classifiers, the dense layers behind their pooled vectors, which distillers
    find; without one `set_classifiers(teacher=[first, second])` gives them.

    Raises:
        UsageError: When it is built, if there is one teacher only, or a teacher's classifier is
            missing or does not take features of its tap; in training, if the labels are no classes.

    Deviations: the published connector is a stack of convolutions; this is the one of `srrl`. The
    published loop begins with the features in the second epoch. The weights add up to 1, and are
    divided by `K` once more, as in the code.

    Example:
    ```python
    loss = tfkd.losses.ConfidenceWeightedFeatures()
    classifier = tfkd.taps.Classifier(teacher_kernel)
    loss.set_classifiers(teacher=[classifier, classifier])
    value = loss([student_map] * 2, [teacher_map] * 2, labels=labels, training=True)
    ```

    References:
        - [Confidence-Aware Multi-Teacher Knowledge
          Distillation](https://arxiv.org/abs/2201.00007), and its
          [code](https://github.com/Rorozhl/CA-MKD).
    """

    id = "camkd_features"
    spots = "before_pooling"
    teacher_spots = "teachers_before_pooling"
    tap_rank = 4
    needs_labels = True
    needs_classifiers = ("teacher",)

    def __init__(self, weight=50.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.connectors = []

    def read_models(self, student, teacher, pairs):
        """Takes the classifiers of all teachers."""
        names = [tap.partition("/")[0] for _, tap in pairs]
        known = taps.at_spots(teacher, taps.TEACHERS)
        if not set(names) <= set(known):
            raise UsageError(
                f"Loss {self.name!r} needs taps of the teachers {', '.join(known)}, such as "
                f"'teacher1/stage3'; received {', '.join(tap for _, tap in pairs)}."
            )
        self.set_classifiers(
            teacher=[self._classifier_of(teacher.get_layer(name)) for name in names]
        )

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks that there is a classifier for each of several teachers; makes the connectors."""
        given = self.teacher_classifier
        if given is not None and (len(given) < 2 or len(given) != len(teacher_taps_shape)):
            raise UsageError(
                f"Loss {self.name!r} weighs several teachers, and received {len(given)} "
                f"classifiers and {len(teacher_taps_shape)} taps: every teacher needs one of each."
            )
        super().build(student_taps_shape, teacher_taps_shape)

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the connector to one teacher."""
        features = self.teacher_classifier[spot].kernel.shape[0]
        if features != teacher_shape[-1]:
            raise UsageError(
                f"Loss {self.name!r} reads the teacher's tap of shape {teacher_shape} by its "
                f"classifier, which takes {features} features: the tap must be what is pooled for "
                "it."
            )
        self.connectors.append(connector(self, spot, student_shape[-1], teacher_shape[-1]))

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Computes the unweighted loss; see `DistillationLoss.call`."""
        self.check_labels(labels)
        # One mask for all teachers: their weights belong together.
        mask = self.masks_of_spots(sample_mask, len(student_taps))[0]
        adapted, wanted, through = [], [], []
        for spot, (student, teacher) in enumerate(zip(student_taps, teacher_taps)):
            selected = selection(mask, student)
            chosen = None if mask is None else selected
            student = self.connectors[spot](student, training=training, selected=chosen)
            kernel, bias = (
                0.0 if value is None else ops.stop_gradient(ops.cast(value, "float32"))
                for value in (
                    self.teacher_classifier[spot].kernel,
                    self.teacher_classifier[spot].bias,
                )
            )
            through.append(ops.matmul(ops.mean(student, axis=(1, 2)), kernel) + bias)
            student, teacher = match_sizes(student, ops.stop_gradient(teacher))
            adapted.append(keep_selected(flatten(student), selected))
            wanted.append(keep_selected(flatten(teacher), selected))
        distances = confidence_weighted_distances(adapted, wanted, through, labels)
        return masked_mean(distances, mask)
