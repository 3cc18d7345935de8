"""KDCL: classifiers that learn from one target, made of all (Guo et al., 2020)."""

import keras
import numpy as np
from keras import ops

from tfkd.distillers.mutual import MutualDistiller
from tfkd.errors import UsageError

#: The choice of `targets` whose weights are measured on validation data.
GENERAL = "general"


def margins(logits, labels):
    """Returns logits minus that of the label, which is then 0.

    Args:
        logits: Float32 tensor `(..., batch, classes)`.
        labels: Integer tensor `(batch,)`.
    """
    is_label = ops.one_hot(labels, logits.shape[-1], dtype="float32")
    return logits - ops.sum(is_label * logits, axis=-1, keepdims=True)


def linear_weights(logits, labels):
    """Finds the mixture of logits that is the most certain of the label.

    For each sample it minimises the cross-entropy of `Σ_k w_k · z_k` over weights `w_k ≥ 0` that
    add up to 1, a convex problem: weight moves between the two classifiers for which that helps
    the most, by bisection of the slope. For two classifiers that is exact.

    Args:
        logits: Float32 tensor `(classifiers, batch, classes)`.
        labels: Integer tensor `(batch,)`.

    Returns:
        A float32 tensor `(classifiers, batch)`.
    """
    count, apart = logits.shape[0], margins(logits, labels)

    def slopes(weights):
        mixed = ops.softmax(ops.sum(weights[..., None] * apart, axis=0))
        return ops.sum(mixed * apart, axis=-1)

    def one_of(values):
        return ops.one_hot(ops.argmax(values, axis=0), count, axis=0, dtype="float32")

    def move(_, weights):
        slope = slopes(weights)
        taken = one_of(ops.where(weights > 0, slope, -np.inf))
        direction = one_of(-slope) - taken

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            falls = ops.sum(direction * slopes(weights + middle * direction), axis=0) < 0
            return ops.where(falls, middle, low), ops.where(falls, high, middle)

        most = ops.sum(taken * weights, axis=0)
        low, high = ops.fori_loop(0, 24, halve, (ops.zeros_like(most), most))
        # All of it where the slope still falls there.
        return weights + ops.where(high < most, low, most) * direction

    weights = ops.ones_like(logits[..., 0]) / count
    return ops.fori_loop(0, 1 if count == 2 else 4 * count, move, weights)


class KDCL(MutualDistiller):
    """Collaborative learning: all classifiers learn from one target that is made of them.

    `L = Σ_i CE(z_i, y) + mutual_weight · temperature² ·
    Σ_i KL(softmax(t / temperature) ‖ softmax(z_i / temperature))`

    The logits `t` of the target, through which no gradient flows, are made of all logits `z_i`,
    a classifier's own included, in sight of the labels.

    Everything else is as in `MutualDistiller`; classifiers may be of different architectures.

    Args:
        students: List of at least two different `keras.Model`s that output logits
            `(batch, classes)` for the same inputs; see `MutualDistiller`.
        temperature: Positive number or schedule. Defaults to 2, as published.
        mutual_weight: Number of at least 0 or schedule. Defaults to 1, as published.
        targets: How the target is made, for each image:

            - `"naive"`, the logits of the classifier whose cross-entropy is the least.
            - `"linear"`, the mixture `Σ_k w_k · z_k` whose cross-entropy is the least.
            - `"min_logit"`, of each class the least of the logits above that of the label,
              `min_k (z_kc − z_ky)`: as certain of the label as all classifiers together. The
              default, since it needs neither a search nor validation data.
            - `"general"`, the mixture with weights `w = C⁻¹1 / (1ᵀC⁻¹1)` of the classifiers'
              errors `C_kl = mean_i (p_ik − y_i) · (p_il − y_i)` on the validation data of the
              epoch before; equal weights in the first epoch. The same for all images, and below 0
              where that makes errors cancel.

            Images of several labels, as of mixup, count for the one that has the most.
        name: String, optional.

    Raises:
        UsageError: As `MutualDistiller`; in `fit()`, if `targets="general"` has no validation
            data.

    Example:
    ```python
    students = [
        tfkd.models.create("resnet8", num_classes=10, input_shape=(28, 28, 1), seed=0),
        tfkd.models.create("resnet20", num_classes=10, input_shape=(28, 28, 1), seed=1),
    ]
    distiller = tfkd.KDCL(students)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    ```

    Logs: those of `MutualDistiller`; with `targets="general"` also `val_error_covariance_1_1`, ...,
    the entries of `C`.

    Deviations: the authors' code is not public, and the paper was not read: the four targets and
    their defaults are those of public notes, and of `"general"` the weights are recalled. That
    mixtures are of logits, one for each image, that `C` is one of probabilities, and the search
    of `"linear"` are ours. In the paper every classifier sees an augmentation of its own of every
    image; here that is a choice of the data, `tfkd.data.load(..., peer_views=2)`, and by default
    all see the same.

    References:
        - [Online Knowledge Distillation via Collaborative
          Learning](https://openaccess.thecvf.com/content_CVPR_2020/html/Guo_Online_Knowledge_Distillation_via_Collaborative_Learning_CVPR_2020_paper.html).
    """

    id = "kdcl"
    known_targets = ("naive", "linear", "min_logit", GENERAL)

    def __init__(
        self, students, temperature=2.0, mutual_weight=1.0, targets="min_logit", name=None
    ):
        super().__init__(students, temperature, mutual_weight, targets, name)
        if targets == GENERAL:
            self.mixture = self.add_weight(
                shape=(len(self.students),),
                initializer=keras.initializers.Constant(1 / len(self.students)),
                trainable=False,
                aggregation="only_first_replica",
                name="mixture",
            )

    def targets_of(self, batch, logits):
        """Returns the one target, for every classifier."""
        stacked = ops.stack([ops.stop_gradient(one) for one in logits])
        labels = batch.class_numbers(stacked.shape[-1])
        target = {
            "naive": self._naive,
            "linear": self._linear,
            "min_logit": lambda *given: ops.min(margins(*given), axis=0),
            GENERAL: lambda logits, _: ops.tensordot(self.mixture, logits, axes=1),
        }[self.targets](stacked, labels)
        return [[target]] * len(logits)

    @staticmethod
    def _naive(logits, labels):
        """Returns the logits that are the most certain of the label."""
        cross_entropies = ops.logsumexp(margins(logits, labels), axis=-1)
        best = ops.argmin(cross_entropies, axis=0)
        chosen = ops.one_hot(best, logits.shape[0], axis=0, dtype="float32")
        return ops.sum(chosen[..., None] * logits, axis=0)

    @staticmethod
    def _linear(logits, labels):
        """Returns the mixture that is the most certain of the label."""
        return ops.sum(linear_weights(logits, labels)[..., None] * logits, axis=0)

    def fit(self, x=None, y=None, **kwargs):
        """Trains the classifiers; see `Distiller.fit`."""
        held_out = kwargs.get("validation_data"), kwargs.get("validation_split")
        if self.targets == GENERAL and not any(given is not None for given in held_out):
            raise UsageError(
                'KDCL(targets="general") weighs the classifiers by their errors on validation '
                'data: pass validation_data, or take targets="min_logit".'
            )
        return super().fit(x, y, **kwargs)

    def own_callbacks(self, x, batch_size=None, epochs=1):
        """Returns what weighs the classifiers after an epoch, where the target needs it."""
        if self.targets != GENERAL:
            return []
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: self.weigh(logs))]

    def track_accuracies(self, batch, logits):
        """Logs accuracies, and in evaluation the covariances of errors where they are needed."""
        super().track_accuracies(batch, logits)
        if self.targets != GENERAL or not self._evaluating:
            return
        classes = logits[0].shape[-1]
        right = ops.one_hot(batch.class_numbers(classes), classes, dtype="float32")
        errors = [ops.softmax(one) - right for one in logits]
        for name, (row, column) in self._covariances().items():
            self.track(name, ops.mean(ops.sum(errors[row] * errors[column], axis=-1)), batch)

    def _covariances(self):
        """Returns `{log: (row, column)}` of the lower half of the matrix, which is symmetric."""
        return {
            f"error_covariance_{row + 1}_{column + 1}": (row, column)
            for row in range(len(self.students))
            for column in range(row + 1)
        }

    def weigh(self, logs):
        """Sets the weights of the mixture by the errors on validation data.

        Args:
            logs: `{name: value}` of an epoch. Without validation the weights stay as they are.
        """
        count = len(self.students)
        errors = np.zeros((count, count))
        for name, places in self._covariances().items():
            if f"val_{name}" not in logs:
                return
            errors[places] = errors[places[::-1]] = np.squeeze(logs[f"val_{name}"])
        # Classifiers that err alike would leave nothing to invert.
        errors += 1e-6 * max(np.trace(errors), 1e-6) * np.eye(count)
        weights = np.linalg.solve(errors, np.ones(count))
        self.mixture.assign(weights / weights.sum())
