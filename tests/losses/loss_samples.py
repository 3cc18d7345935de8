"""Every loss with taps to run it on, for tests that hold for all of them."""

import numpy as np
import tensorflow as tf

from tfkd import losses, taps

MAPS = [((8, 8, 4), (8, 8, 5)), ((4, 4, 6), (2, 2, 3))]
SHAPES = {
    "stages": MAPS,
    "before_relu": MAPS,
    "after_relu+pooled": [*MAPS, ((6,), (9,))],
    "before_pooling": [((4, 4, 6), (8, 8, 9))],
    "hint": [((8, 8, 4), (4, 4, 5))],
    "last_map": [((2, 2, 6), (4, 4, 8))],
    "pooled": [((6,), (9,))],
    "logits": [((5,), (5,))],
    "teachers": [((5,), (5,))] * 3,
    "camkd_features": [((4, 4, 6), (8, 8, 9)), ((4, 4, 6), (2, 2, 8)), ((4, 4, 6), (4, 4, 9))],
    "irg": [*MAPS, ((6,), (9,)), ((5,), (5,))],
    "fsp": [((8, 8, 4), (4, 4, 4)), ((4, 4, 6), (4, 4, 6))],
}
ARGUMENTS = {
    "crd": {"num_examples": 12, "negatives": 7, "embedding_size": 8, "seed": 3},
    "cc": {"embedding_size": 8},
    "kd, standardized": {"standardize": True},
    "dkd, standardized": {"standardize": True},
    "mlkd, selecting": {"select": True, "standardize": True},
    "semckd": {"batch_size": 8},
    "aekd, normalized": {"normalize": True, "largest_weight": 0.5},
}
#: Losses that compare samples with each other, and so need two.
PAIRWISE = ("sp", "cc", "rkd", "pkt")
IDS = (
    *("kd", "dkd", "fitnet", "at", "sp", "cc", "vid"),
    *("rkd", "pkt", "ft", "fsp", "nst", "ab", "crd"),
    *("dist", "nkd", "wsld", "ttm", "wttm", "mlkd"),
    *("irg", "ofd", "srrl", "cat_kd", "reviewkd", "mgd", "semckd"),
    *("camkd", "camkd_features", "ebkd", "aekd", "dgkd"),
)
#: Options of losses that change their arithmetic.
VARIANTS = ("kd, standardized", "dkd, standardized", "mlkd, selecting", "aekd, normalized")


class Sample:
    """A loss, built or not, and taps of six samples."""

    batch = 6

    def __init__(self, name, build=True):
        self.loss = losses.get(name.split(",")[0], **ARGUMENTS.get(name, {}))
        shapes = SHAPES.get(name) or SHAPES[self.loss.spots]
        random = np.random.default_rng(0)

        def features(side):
            return [
                tf.constant(random.normal(size=(self.batch, *pair[side])), "float32")
                for pair in shapes
            ]

        self.student, self.teacher = features(0), features(1)
        student, teacher = (
            [
                taps.Classifier(tf.constant(random.normal(size=(tap.shape[-1], 5)), "float32"))
                for tap in side
            ]
            for side in (self.student, self.teacher)
        )
        several = name == "camkd_features"
        self.loss.set_classifiers(student[0], teacher if several else teacher[0])
        self.extra = {}
        if self.loss.needs_labels:
            self.extra["labels"] = tf.constant([0, 1, 2, 3, 4, 0])
        if self.loss.needs_indices:
            self.loss.set_examples(np.arange(12) % 3)
            self.extra["indices"] = tf.constant([0, 4, 8, 3, 11, 6])
        if build:
            sides = (self.student, self.teacher)
            self.loss.build(*([tap.shape for tap in side] for side in sides))

    def value(self, student=None, teacher=None, mask=None, extra=None, training=False):
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher
        extra = self.extra if extra is None else extra
        return self.loss(student, teacher, sample_mask=mask, training=training, **extra)

    def value_and_gradients(self, student, teacher, mask, training=False):
        """Returns the value, and the gradients of student taps and trainable variables."""
        variables = [variable.value for variable in self.loss.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = self.value(student, teacher, mask, training=training)
        gradients = tape.gradient(
            value, [*student, *variables], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return value, gradients

    def rows(self, rows):
        """Returns taps and extras of some of the samples."""
        extra = {key: tf.gather(values, rows) for key, values in self.extra.items()}
        student, teacher = (
            [tf.gather(tap, rows) for tap in taps] for taps in (self.student, self.teacher)
        )
        return {"student": student, "teacher": teacher, "extra": extra}
