"""CAT-KD: where in the image the classifier sees each class (Guo et al., 2023)."""

import keras
from keras import ops

from tfkd.errors import UsageError, check_positive_integer
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import (
    adaptive_average_pool,
    flatten,
    keep_selected,
    normalize,
    selection,
)


def class_maps(features, kernel, resolution, normalized=False):
    """What a classifier makes of the features in each part of an image.

    Args:
        features: Float32 tensor `(batch, height, width, channels)`.
        kernel: Float32 tensor `(channels, classes)`.
        resolution: Integer, the height and width of the result.
        normalized: Whether the map of each class is divided by its L2 norm.

    Returns:
        A tensor `(batch, resolution, resolution, classes)`.
    """
    # Pooled first, which is the same and takes fewer products.
    maps = ops.matmul(adaptive_average_pool(features, (resolution, resolution)), kernel)
    return normalize(maps, axis=(1, 2)) if normalized else maps


@keras.saving.register_keras_serializable(package="tfkd")
class ClassAttentionTransfer(DistillationLoss):
    """Mean squared difference of class activation maps.

    `mean (a(s) − a(t))²` over samples, positions and classes. `a(f)` is the map
    `(batch, height, width, channels)` in front of global average pooling, average-pooled to
    `resolution`², times the kernel of the model's own classifier without its bias; with
    `normalized` the map of each class is divided by its L2 norm. The student's classifier gets
    gradients, the teacher's none. Maps may differ in size and channels.

    Args:
        resolution: Integer. Defaults to 2, as published for most pairs.
        normalized: Boolean. Defaults to False, as published for students of the teacher's kind.
        weight: Number. Defaults to 15, as published for resnet8x4 under resnet32x4.
        spots: Defaults to `"before_pooling"`.

    Published for CIFAR-100, teacher and student: weight, resolution, normalized.

    | pair | |
    | --- | --- |
    | resnet32x4, resnet8x4 | 15, 2, False |
    | resnet56, resnet20 | 0.7, 2, False |
    | wrn_40_2, wrn_16_2 | 12, 2, False |
    | vgg13, vgg8 | 4.5, 2, False |
    | resnet32x4, shufflenet_v1 or shufflenet_v2 | 600, 4, True |
    | wrn_40_2, shufflenet_v1 | 80, 4, True |
    | resnet50, mobilenet_v2 | 40, 2, True |
    | vgg13, mobilenet_v2 | 15, 2, True |

    Needs the classifiers of both models, the dense layers behind their pooled vectors, which
    distillers find; without one `set_classifiers()` gives them.

    Raises:
        UsageError: When it is built, if a classifier is missing or does not take features of its
            tap, if both have other classes, or a map is smaller than `resolution`.

    Deviations: the published networks turn their dense layer into a convolution, and leave out
    the teacher's bias in its logits too, which are not used; here models stay as they are.

    Example:
    ```python
    loss = tfkd.losses.ClassAttentionTransfer()
    loss.set_classifiers(
        tfkd.taps.Classifier(student_kernel), tfkd.taps.Classifier(teacher_kernel)
    )
    value = loss([student_map], [teacher_map])
    ```

    References:
        - [Class Attention Transfer Based Knowledge Distillation](https://arxiv.org/abs/2304.12777),
          section 3, and its [code](https://github.com/GzyAftermath/CAT-KD).
    """

    id = "cat_kd"
    spots = "before_pooling"
    tap_rank = 4
    needs_classifiers = ("student", "teacher")

    def __init__(self, resolution=2, normalized=False, weight=15.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_positive_integer("resolution", resolution)
        self.resolution = resolution
        self.normalized = normalized

    def build_spot(self, spot, student_shape, teacher_shape):
        """Checks that both classifiers fit the maps and each other."""
        for side, shape in (("student", student_shape), ("teacher", teacher_shape)):
            self.check_classifier(side, shape)
            if min(shape[1:3]) < self.resolution:
                raise UsageError(
                    f"Loss {self.name!r} cannot pool the {side}'s map of shape {shape} to "
                    f"{self.resolution}x{self.resolution}: take a smaller resolution."
                )
        classifiers = (self.student_classifier, self.teacher_classifier)
        self.check_classes(*((None, classifier.kernel.shape[-1]) for classifier in classifiers))

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two maps; see the class."""
        selected = selection(sample_mask, student_tap)
        student, teacher = (
            class_maps(
                keep_selected(tap, selected),
                ops.cast(classifier.kernel, "float32"),
                self.resolution,
                self.normalized,
            )
            for tap, classifier in (
                (student_tap, self.student_classifier),
                (teacher_tap, self.teacher_classifier),
            )
        )
        difference = flatten(student - ops.stop_gradient(teacher))
        return masked_mean(ops.mean(ops.square(difference), axis=-1), sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {
            **super().get_config(),
            "resolution": self.resolution,
            "normalized": self.normalized,
        }
