"""SRRL: features that the teacher's classifier can read (Yang et al., 2021)."""

import keras
from keras import ops

from tfkd.errors import check_nonnegative
from tfkd.layers.normalized_convolution import NormalizedConvolution
from tfkd.losses.distillation_loss import DistillationLoss, masked_mean
from tfkd.losses.numerics import as_map, keep_selected, selection


def connector(loss, spot, channels, filters):
    """Makes a 1×1 convolution with batch normalisation and ReLU for one spot of a loss.

    Args:
        loss: The `DistillationLoss`, whose name and dtype it takes.
        spot: Integer, the position of the spot.
        channels: Integer, the channels of the student's maps.
        filters: Integer, those of the teacher's.

    Returns:
        A `NormalizedConvolution` that has its weights already.
    """
    layer = NormalizedConvolution(
        filters,
        activation="relu",
        name=f"{loss.name}_connector_{spot}",
        dtype=loss.dtype_policy,
    )
    layer.build((None, None, None, channels))
    return layer


@keras.saving.register_keras_serializable(package="tfkd")
class SoftmaxRegressionRepresentationLearning(DistillationLoss):
    """Squared distance of pooled features, and of what the teacher's classifier makes of them.

    `mean (h − h_t)² + w · mean (z(h) − z(h_t))²` over samples and features, or classes. `h` is
    the mean over the positions of `c(s)`, a connector of 1×1 convolution without bias, batch
    normalisation and ReLU, trained with the student; `h_t` is that of the teacher's map, and `z`
    the teacher's own classifier, frozen. Taps are maps `(batch, height, width, channels)`, token
    sequences `(batch, tokens, features)` or vectors; sizes need not be equal.

    Args:
        regression_weight: Number, the `w` above. Defaults to 1, as published.
        weight: Number. Defaults to 1, as published.
        spots: Defaults to `"before_pooling"`: the map that global average pooling makes the pooled
            vector of.

    Needs the teacher's classifier, the dense layer behind its pooled vector, which distillers
    find; without one `set_classifiers(teacher=tfkd.taps.classifier(teacher))` gives it.

    Raises:
        UsageError: When it is built, if the teacher's classifier is missing or does not take
            features of the teacher's tap.

    Deviations: none. The classifier's bias is in both `z` and cancels.

    Example:
    ```python
    loss = tfkd.losses.SoftmaxRegressionRepresentationLearning()
    loss.set_classifiers(teacher=tfkd.taps.Classifier(teacher_kernel))
    value = loss([student_map], [teacher_map], training=True)
    ```

    References:
        - [Knowledge Distillation via Softmax Regression Representation
          Learning](https://openreview.net/forum?id=ZzwDy_wiWv), section 3, and its
          [code](https://github.com/jingyang2017/KD_SRRL).
    """

    id = "srrl"
    spots = "before_pooling"
    tap_rank = (2, 3, 4)
    needs_classifiers = ("teacher",)

    def __init__(self, regression_weight=1.0, weight=1.0, **kwargs):
        super().__init__(weight=weight, **kwargs)
        check_nonnegative("regression_weight", regression_weight)
        self.regression_weight = regression_weight
        self.connectors = []

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the connector of one spot."""
        self.check_classifier("teacher", teacher_shape)
        self.connectors.append(connector(self, spot, student_shape[-1], teacher_shape[-1]))

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Compares two taps through the spot's connector; see the class."""
        selected = selection(sample_mask, student_tap)
        chosen = None if sample_mask is None else selected
        adapted = self.connectors[spot](as_map(student_tap), training=training, selected=chosen)
        difference = ops.mean(adapted, axis=(1, 2)) - ops.mean(as_map(teacher_tap), axis=(1, 2))
        difference = keep_selected(difference, selected)
        kernel = ops.stop_gradient(ops.cast(self.teacher_classifier.kernel, "float32"))
        of_features = ops.mean(ops.square(difference), axis=-1)
        of_logits = ops.mean(ops.square(ops.matmul(difference, kernel)), axis=-1)
        return masked_mean(of_features + self.regression_weight * of_logits, sample_mask)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        return {**super().get_config(), "regression_weight": self.regression_weight}
