"""Mutual learning: classifiers that teach each other (Zhang et al., 2018)."""

import dataclasses

from keras import ops

from tfkd import losses, models, pictures, schedules, taps
from tfkd.distillers import checks
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.trainer import Untracked
from tfkd.errors import UsageError, check_one_of
from tfkd.models import mean_prediction

#: The learner whose prediction is the mean of all classifiers' predictions.
ENSEMBLE = "ensemble"


class MutualDistiller(Distiller):
    """Trains several classifiers that teach each other, without a teacher.

    Every classifier learns from the labels and from the others' predictions for the same images:

    `L = Σ_i CE(z_i, y) + mutual_weight · temperature² · Σ_i KL(q_i ‖ softmax(z_i / temperature))`

    where `q_i` is the mean of the others' softened predictions. No gradient flows into `q_i`. All
    terms come from one forward pass of each classifier.

    `distiller.student` is the first classifier, the others are `distiller.peers`. None of them is
    better than another by design: report their mean, or fix one of them beforehand, but do not
    pick the best by test data.

    Where the data has images for each of them (`tfkd.data.load(..., peer_views=2)`), every
    classifier is trained on augmentations of its own.

    Args:
        students: List of at least two different `keras.Model`s that output logits
            `(batch, classes)` for the same inputs, of any architectures. Build them with
            different seeds: equal classifiers have nothing to teach.
        temperature: Positive number or schedule.
        mutual_weight: Number of at least 0 or schedule, the weight of the divergence from peers.
        targets: `"mean"`, each learns from the mean of the others' predictions; or `"pairwise"`,
            from each of them, by the mean of the divergences. Both have the same gradient, since
            that of a KL divergence is linear in its target; `mutual_loss` differs.
        name: String, optional.

    Raises:
        UsageError: If there are fewer than two students, some share variables or differ in
            classes or inputs, or one outputs probabilities.

    Example:
    ```python
    students = [
        tfkd.models.create("resnet8", num_classes=10, input_shape=(28, 28, 1), seed=seed)
        for seed in (0, 1)
    ]
    distiller = tfkd.MutualDistiller(students)
    distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    distiller.fit(train, validation_data=validation, epochs=30)
    distiller.student.save("student.keras")
    distiller.ensemble().save("ensemble.keras")
    ```

    Logs: `loss`, summed over the classifiers; `student_loss`, the first one's on the labels;
    `peers_loss`, the sum of the others'; `mutual_loss`, the sum of the divergences, unweighted;
    `accuracy` of the first, `student2_accuracy`, ... of the others, their `mean_accuracy`, and
    `ensemble_accuracy` of their mean prediction. All accuracies are also those of `evaluate`.

    Deviations: the paper updates one classifier after the other, each on new predictions;
    here all are updated at once, from one forward pass each. More than two learn pairwise in the
    paper; the mean of the others is its ensemble variant.

    References:
        - [Deep Mutual Learning](https://arxiv.org/abs/1706.00384).
    """

    id = "mutual"
    needs_teacher = False
    takes_students = True
    needs_classes = True
    label_terms = ("student_loss", "peers_loss")
    #: The choices of `targets`.
    known_targets = ("mean", "pairwise")

    def __init__(self, students, temperature=1.0, mutual_weight=1.0, targets="mean", name=None):
        students = checks.models.check_students(students)
        super().__init__(students[0], name=name)
        check_one_of("targets", targets, self.known_targets)
        self.targets = targets
        self.peers = students[1:]
        self.peer_optimizers = None
        schedules.number_or_schedule("mutual_weight", mutual_weight, nonnegative=True)
        self.mutual = losses.KnowledgeDistillation(temperature, weight=mutual_weight, name="mutual")
        self._ensemble = Untracked(model=None)

    @property
    def students(self):
        """All classifiers, the first one included."""
        return [self.student, *self.peers]

    @property
    def peer_names(self):
        """The names of the classifiers after the first, as in logs and files."""
        return [f"student{number}" for number in range(2, len(self.peers) + 2)]

    def build(self, input_shape):
        """Checks that all classifiers have the same classes; builds subclassed ones."""
        shapes = [
            taps.shapes(taps.extractor(student), input_shape)[taps.LOGITS]
            for student in self.students
        ]
        for student, shape in zip(self.students, shapes):
            if shape != shapes[0]:
                raise UsageError(
                    f"Student {self.student.name!r} has {shapes[0][-1]} classes and student "
                    f"{student.name!r} {shape[-1]}: all must be built for the same classes."
                )
        spots = len(shapes) * (len(self.peers) if self.targets == "pairwise" else 1)
        self.mutual.build(shapes[:1] * spots, shapes[:1] * spots)

    def compile(self, optimizer="sgd", loss=None, metrics=None, peer_optimizers=None, **kwargs):
        """Configures training.

        Args:
            optimizer: Optimizer of all classifiers; of the first where the others have their own.
            loss: The classifiers' loss on the labels, a Keras loss of logits.
            metrics: List of metrics of the first classifier, as in `keras.Model.compile`.
            peer_optimizers: List of optimizers, one for each further classifier: Keras
                optimizers, names, or dictionaries of settings as `tfkd.optimizers.create` takes
                them. None: `optimizer` updates all of them.
            **kwargs: As `tfkd.Distiller.compile` takes them.

        Raises:
            UsageError: If there are not as many optimizers as peers, or one occurs twice.
        """
        given = peer_optimizers
        if given is not None and (
            not isinstance(given, (list, tuple)) or len(given) != len(self.peers)
        ):
            raise UsageError(
                f"peer_optimizers needs one for each of the {len(self.peers)} students after the "
                f"first; received {given!r}."
            )
        super().compile(optimizer, loss, metrics, **kwargs)
        further = [kwargs.get(name) for name in self.extra_optimizers]
        if checks.arguments.has_duplicates([optimizer, *(given or ()), *further]):
            names = ", ".join(["optimizer", *self.extra_optimizers])
            raise UsageError(
                f"{names} and peer_optimizers must be different objects: each keeps the state of "
                "its own variables. Without peer_optimizers, optimizer updates all students."
            )
        self.peer_optimizers = given and [
            self._extra_optimizer(f"peer_optimizers[{position}]", one)
            for position, one in enumerate(given)
        ]

    def optimizers(self):
        """Returns `{name: (optimizer, variables it updates)}`."""
        return self.student_optimizers()

    def student_optimizers(self):
        """Returns those of `optimizers()` that update classifiers."""
        variables = [student.trainable_variables for student in self.students]
        if self.peer_optimizers is None:
            return {"optimizer": (self.optimizer, sum(variables, start=[]))}
        names = ["optimizer", *(f"{name}_optimizer" for name in self.peer_names)]
        return dict(zip(names, zip([self.optimizer, *self.peer_optimizers], variables)))

    def compute_losses(self, batch):
        """Runs every classifier once; each learns from the labels and from the others."""
        logits = self.observe_students(batch)
        self.track_accuracies(batch, logits)
        return logits[0], self.teach_each_other(batch, logits)

    def check_peer_images(self, images):
        """Refuses images for more or fewer classifiers than there are."""
        if images is not None and len(images) != len(self.peers):
            raise UsageError(
                f"The data has images for {len(images) + 1} students, and there are "
                f"{len(self.students)}: set peer_views={len(self.students)}."
            )

    def observe_students(self, batch, training=True):
        """Runs every classifier once, on images of its own where the data has them.

        Returns:
            A list of float32 logits `(batch, classes)`.
        """
        seen = [batch, *(dataclasses.replace(batch, inputs=x) for x in batch.peer_images or ())]
        if len(seen) == 1:
            seen *= len(self.students)
        outputs = [self.run_student(*pair, pair[1], training) for pair in zip(seen, self.students)]
        return [ops.cast(logits, "float32") for logits in outputs]

    def teach_each_other(self, batch, logits):
        """Returns the terms of labels and peers.

        Args:
            batch: The `Batch`.
            logits: List of the classifiers' logits for its inputs.
        """
        own, *others = [self.student_loss(batch, tensor) for tensor in logits]
        weight = self.mutual.value_of(self.mutual.weight)
        return {
            "student_loss": (1.0, own),
            "peers_loss": (1.0, sum(others)),
            "mutual_loss": (weight, self.mutual_loss(batch, logits)),
        }

    def mutual_loss(self, batch, logits, sample_mask=None):
        """Returns the sum of the classifiers' divergences from the others' predictions.

        No gradient flows into the targets, as in every distillation loss.

        Args:
            batch: The `Batch`.
            logits: List of the classifiers' logits `(batch, classes)`.
            sample_mask: Tensor `(batch,)` of zeros and ones, the samples that count; None for
                all.

        Returns:
            A float32 scalar: a mean over the samples, by `temperature²`.
        """
        teachers = self.targets_of(batch, logits)
        pupils = [own for own, theirs in zip(logits, teachers) for _ in theirs]
        masks = None if sample_mask is None else [sample_mask] * len(pupils)
        value = self.distillation_loss(self.mutual, batch, pupils, sum(teachers, start=[]), masks)
        return value * len(logits) / len(pupils)

    def targets_of(self, batch, logits):
        """Returns what the classifiers learn from each other.

        Args:
            batch: The `Batch`.
            logits: List of the classifiers' logits `(batch, classes)`.

        Returns:
            A list of lists of logits, the targets of each classifier, all as many.
        """
        others = [logits[:own] + logits[own + 1 :] for own in range(len(logits))]
        if self.targets == "pairwise":
            return others
        temperature = self.mutual.value_of(self.mutual.temperature)
        return [[mean_prediction(theirs, temperature)] for theirs in others]

    def track_accuracies(self, batch, logits):
        """Logs the accuracies of all classifiers but the first, the mean and the ensemble's."""
        for name, tensor in zip(self.peer_names, logits[1:]):
            self.track_accuracy(f"{name}_accuracy", tensor, batch)
        self.track_accuracy(f"{ENSEMBLE}_accuracy", mean_prediction(logits), batch)
        labels = batch.class_numbers(logits[0].shape[-1])
        hits = [ops.argmax(tensor, axis=-1) == labels for tensor in logits]
        self.track("mean_accuracy", ops.mean(ops.cast(hits, "float32")), batch)

    def test_step(self, data):
        """Evaluates all classifiers; called by `evaluate`."""
        batch = self.unpack(data)
        logits = self.observe_students(batch, training=False)
        self.track_accuracies(batch, logits)
        return self.evaluated(batch, logits[0])

    def learners(self):
        """Returns `{"student2": second classifier, ..., "ensemble": mean prediction}`."""
        learners = dict(zip(self.peer_names, self.peers))
        if all(taps.output(student) is not None for student in self.students):
            learners[ENSEMBLE] = self.ensemble()
        return learners

    def ensemble(self):
        """Returns all classifiers as one Keras model that predicts their mean.

        It shares its weights with them, is made of Keras' own parts, and can be saved and loaded
        without tfkd where the students can.

        Returns:
            A `keras.Model` that outputs `(batch, classes)`, whose softmax is the mean prediction.

        Raises:
            UsageError: If a student is subclassed.
        """
        if self._ensemble.model is None:
            for student in self.students:
                if taps.output(student) is None:
                    raise UsageError(
                        f"Student {student.name!r} is subclassed, so it cannot be joined with the "
                        "others in one Keras model; a functional model can."
                    )
            self._ensemble.model = models.ensemble(
                self.students, mean="predictions", name=ENSEMBLE, member="student"
            )
        return self._ensemble.model

    def pictures(self, history):
        """Returns `{"mutual.png": ...}`: accuracies of all classifiers, and how they diverge."""
        names = [*self.peer_names, "mean", ENSEMBLE]
        labels = {"student": "accuracy", **{name: f"{name}_accuracy" for name in names}}
        contents = {
            **pictures.accuracy_panels(labels),
            "divergence from each other, by temperature²": {"sum": "mutual_loss"},
        }
        return {"mutual.png": pictures.Panels(history, contents)}
