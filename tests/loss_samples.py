"""Every loss with taps to run it on, for tests that hold for all of them."""

import typing

import numpy as np
import tensorflow as tf

from tfkd import losses, taps

MAPS = [((8, 8, 4), (8, 8, 5)), ((4, 4, 6), (2, 2, 3))]
#: The taps of each kind of spots: `(student's shape, teacher's shape)` of one sample.
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
    "last_two_maps+pooled+logits": [*MAPS, ((6,), (9,)), ((5,), (5,))],
}


class Row(typing.NamedTuple):
    """What the tests must know of a loss."""

    weight: object  # its default; a schedule's repr
    spots: str
    group: str  # those that train together in tests of what every method must satisfy
    relational: bool = False
    pairwise: bool = False  # compares samples with each other and nothing else, so it needs two
    random: bool = False  # its connectors start at random
    selecting: bool = False  # its connectors see the selected samples only, in training too
    arguments: dict = {}
    shapes: list | None = None  # of its taps, where not those of its spots


#: One row per loss of the package.
LOSSES = {
    "kd": Row(0.9, "logits", "logits"),
    "dkd": Row(1, "logits", "logits"),
    "nkd": Row(1, "logits", "logits"),
    "wsld": Row(2.5, "logits", "logits"),
    "ttm": Row(45, "logits", "logits"),
    "wttm": Row(4, "logits", "logits"),
    "dist": Row(2, "logits", "relations", relational=True),
    "mlkd": Row(0.9, "logits", "relations", relational=True),
    "fitnet": Row(1, "hint", "maps", random=True),
    "at": Row(1000, "stages", "maps"),
    "nst": Row(50, "stages", "maps"),
    "vid": Row(1, "stages", "maps", random=True),
    "ab": Row(0, "stages", "factors", random=True),
    "ft": Row(200, "last_map", "factors", random=True),
    "fsp": Row(50, "stages", "factors", shapes=[((8, 8, 4), (4, 4, 4)), ((4, 4, 6), (4, 4, 6))]),
    "sp": Row(3000, "last_map", "relations", relational=True, pairwise=True),
    "cc": Row(
        0.02,
        "pooled",
        "relations",
        relational=True,
        pairwise=True,
        random=True,
        arguments={"embedding_size": 8},
    ),
    "rkd": Row(1, "pooled", "relations", relational=True, pairwise=True),
    "pkt": Row(30000, "pooled", "relations", relational=True, pairwise=True),
    "crd": Row(
        0.8,
        "pooled",
        "relations",
        relational=True,
        random=True,
        arguments={"num_examples": 12, "negatives": 7, "embedding_size": 8, "seed": 3},
    ),
    "irg": Row(1, "last_two_maps+pooled+logits", "relations", relational=True, selecting=True),
    "ofd": Row(1e-3, "before_relu", "classifiers", random=True, selecting=True),
    "srrl": Row(1, "before_pooling", "classifiers", random=True, selecting=True),
    "cat_kd": Row(15, "before_pooling", "classifiers", selecting=True),
    "reviewkd": Row(
        "LinearWarmUp(start=0.0, end=1.0, epochs=20)",
        "after_relu+pooled",
        "large connectors",
        random=True,
        selecting=True,
    ),
    "mgd": Row(7e-5, "last_map", "large connectors", random=True, selecting=True),
    "semckd": Row(
        400,
        "stages",
        "large connectors",
        relational=True,
        random=True,
        selecting=True,
        arguments={"batch_size": 8},
    ),
    "ebkd": Row(1, "teachers", "teachers"),
    "camkd": Row(1, "teachers", "teachers"),
    "camkd_features": Row(
        50,
        "before_pooling",
        "teachers",
        random=True,
        shapes=[((4, 4, 6), (8, 8, 9)), ((4, 4, 6), (2, 2, 8)), ((4, 4, 6), (4, 4, 9))],
    ),
    "dgkd": Row(1, "teachers", "teachers"),
    "aekd": Row(0.9, "teachers", "teachers", relational=True),
}
IDS = tuple(LOSSES)
PAIRWISE = tuple(name for name, row in LOSSES.items() if row.pairwise)
#: Options of losses that change their arithmetic: arguments beside those of the row.
VARIANTS = {
    "kd, standardized": {"standardize": True},
    "dkd, standardized": {"standardize": True},
    "mlkd, selecting": {"select": True, "standardize": True},
    "aekd, normalized": {"normalize": True, "largest_weight": 0.5},
}


class Sample:
    """A loss, built or not, and taps of six samples."""

    batch = 6

    def __init__(self, name, build=True):
        loss = name.split(",")[0]
        row = LOSSES[loss]
        self.loss = losses.get(loss, **row.arguments | VARIANTS.get(name, {}))
        shapes = row.shapes or SHAPES[row.spots]
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
