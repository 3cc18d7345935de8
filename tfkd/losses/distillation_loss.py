"""The base class of every distillation loss."""

import keras
from keras import ops

from tfkd import schedules, taps
from tfkd.errors import UsageError
from tfkd.losses.keras_interface import KerasInterface
from tfkd.losses.label_losses import BINARY, REGRESSION, kind_of, title_of
from tfkd.losses.numerics import keep_selected, selection, tokens_as_map

#: Where a loss can ask to distil, in the words of the design: see `tfkd.taps.at_spots`.
SPOTS = (
    *("stages", "before_relu", "after_relu", "hint", "last_map", "last_two_maps"),
    *("before_pooling", "pooled", "logits", "teachers"),
)


#: What a tap of each rank is.
FORMS = {
    2: "vectors (batch, features)",
    3: "tokens (batch, tokens, features)",
    4: "maps (batch, height, width, channels)",
}


class DistillationLoss(keras.layers.Layer, KerasInterface):
    """Compares what a student and a teacher compute at one or several spots.

    A loss is a Keras layer, so that trainable connectors (an adapter, an embedding) are its
    weights: they are built from the shapes it first sees, trained with the student, and never
    part of the student that is exported.

    Subclasses set `id` and `spots`, and implement `compare()`, which handles one spot. A loss
    whose spots depend on each other overrides `call()` instead. Connectors are made in
    `build_spot()`, from the shapes of one spot.

    A loss that needs a stage before training sets `preparation`, and the distiller then first
    minimises `preparation_loss()` over `preparation_variables`, and over the student's own
    variables where `prepares_student` is set.

    A loss that needs of the models more than their taps reads it in `read_models()`, which
    distillers call once, with both models, before `build()`. One that needs the dense layers
    behind the pooled vectors says so in `needs_classifiers`, and finds them as
    `student_classifier` and `teacher_classifier`; without a distiller they are given by
    `set_classifiers()`. What is read are the models' own variables: they are no weights of the
    loss, so that they are saved once, with their model, and always current.

    An argument that may change with the epoch passes `schedules.number_or_schedule()` in the
    constructor, is read by `value_of()`, and goes through `keras.saving.serialize_keras_object`
    in `get_config()`.

    It can also be handed to `keras.distillation.Distiller`, as `KerasInterface` describes.

    Args:
        weight: Number, or schedule of `tfkd.schedules` or Keras, by which the *distiller*
            multiplies the value. Defaults to the weight of the published protocol, named by each
            subclass.
        spots: Where to distil: a word of `tfkd.taps.at_spots`, such as `"stages"`, `"hint"`,
            `"last_map"`, `"pooled"` or `"logits"`, several joined by `+`, or a list of pairs
            `[("student tap", "teacher tap"), ...]`. Defaults to the class's own.
        name: String, the name under which the value is logged. Defaults to the class's `id`.

    Attributes:
        id: String, the short name in configs and logs.
        teacher_spots: The word for the teacher's taps where it differs from the class's `spots`;
            None where both are the same.
        needs_labels: Whether `call()` needs `labels`.
        needs_indices: Whether `call()` takes and needs `indices`, the positions of the samples
            in the training set.
        needs_classifiers: The models, of `"student"` and `"teacher"`, whose classifiers it needs.
        tap_rank: Integer, the rank that taps must have: 2 for vectors, 3 for tokens, 4 for maps;
            a tuple of several, or None for any. A loss of maps that is none of tokens gets tokens
            as square maps, without their class token; see `taken`.
        compares_classes: Whether both taps are logits `(batch, classes)` of the same classes.
        relational: Whether samples are compared with each other, so that the value depends on
            which samples share a batch. Distillers then pass the global batch of all replicas.
        teacher_gradient: Whether gradients reach the teacher's taps. Distillers of students that
            teach each other set it where a target is to learn, too.
        preparation: None, or a dictionary with the defaults of the stage before training:
            `epochs`, and `learning_rate`, `momentum` and `weight_decay` of its SGD.
        prepares_student: Whether that stage trains the student too.
        prepared: Where there is such a stage, a variable: 0, and 1 once it is over.
    """

    id = None
    spots = "logits"
    teacher_spots = None
    needs_labels = False
    needs_indices = False
    needs_classifiers = ()
    tap_rank = None
    compares_classes = False
    relational = False
    teacher_gradient = False
    preparation = None
    prepares_student = False

    student_classifier = teacher_classifier = None
    _epoch = None

    def __init__(self, weight=1.0, spots=None, name=None, dtype="float32", **kwargs):
        # float32 whatever the global policy: softmax, norms and similarity matrices lose their
        # meaning in half precision. Keras casts the taps on entry.
        super().__init__(name=name or self.id, dtype=dtype, **kwargs)
        self.weight = schedules.number_or_schedule("weight", weight, nonnegative=True)
        if spots not in (None, self.spots):
            self.teacher_spots = None
        self.spots = _check_spots(type(self).__name__, self.spots if spots is None else spots)

    def __setattr__(self, name, value):
        value = schedules.from_keras(value)
        if isinstance(value, schedules.Schedule) and self._epoch is None:
            # As a variable, so that a compiled step sees it change.
            self._epoch = self.add_weight(
                shape=(),
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name="epoch",
            )
        super().__setattr__(name, value)

    def start_epoch(self, epoch):
        """Sets the epoch for the arguments that are schedules.

        Args:
            epoch: Number, counted from 0. Until it is set, a loss is in epoch 0.
        """
        if self._epoch is not None:
            self._epoch.assign(epoch)

    def value_of(self, number_or_schedule):
        """Returns a number as it is, and a schedule's value at the current epoch."""
        if isinstance(number_or_schedule, schedules.Schedule):
            return number_or_schedule(self._epoch)
        return number_or_schedule

    def read_models(self, student, teacher, pairs):
        """Takes what the loss needs of the models beside their taps; distillers call it.

        By default the classifiers that `needs_classifiers` names.

        Args:
            student: The student, a `keras.Model`.
            teacher: The teacher, a `keras.Model`.
            pairs: List of `(student tap, teacher tap)`, where the loss distils.

        Raises:
            UsageError: If a model does not have what the loss needs.
        """
        self.set_classifiers(
            *(
                self._classifier_of(model) if side in self.needs_classifiers else None
                for side, model in (("student", student), ("teacher", teacher))
            )
        )

    def _classifier_of(self, model):
        try:
            return taps.classifier(model)
        except UsageError as error:
            raise UsageError(f"Loss {self.name!r} needs a classifier. {error}") from error

    def set_classifiers(self, student=None, teacher=None):
        """Sets the classifiers, where no distiller reads them.

        Args:
            student: A `tfkd.taps.Classifier`, the student's. Gradients reach it.
            teacher: A `tfkd.taps.Classifier`, the teacher's. No gradient reaches it.
        """
        self.student_classifier = student
        self.teacher_classifier = teacher

    def check_classifier(self, side, shape):
        """Raises a `UsageError` unless a model's classifier takes the features of a tap.

        Args:
            side: `"student"` or `"teacher"`.
            shape: Shape of the model's tap, features last.
        """
        features = getattr(self, f"{side}_classifier").kernel.shape[0]
        if features != shape[-1]:
            raise UsageError(
                f"Loss {self.name!r} reads the {side}'s tap of shape {tuple(shape)} by its "
                f"classifier, which takes {features} features: the tap must be what is pooled for "
                'it, spots="before_pooling".'
            )

    def build(self, student_taps_shape, teacher_taps_shape):
        """Checks the shapes of the taps and makes the connectors.

        Args:
            student_taps_shape: List of the shapes of the student's taps, batch included.
            teacher_taps_shape: List of the shapes of the teacher's taps.

        Raises:
            UsageError: If the loss cannot compare taps of these shapes.
        """
        if len(student_taps_shape) != len(teacher_taps_shape):
            raise UsageError(
                f"Loss {self.name!r} received {len(student_taps_shape)} student taps and "
                f"{len(teacher_taps_shape)} teacher taps: every spot needs one of each."
            )
        for side in self.needs_classifiers:
            if getattr(self, f"{side}_classifier") is None:
                raise UsageError(
                    f"Loss {self.name!r} does not know the {side}'s classifier: without a "
                    f"distiller call set_classifiers({side}=tfkd.taps.classifier({side})) first."
                )
        shapes_taken = (self.shapes_taken(one) for one in (student_taps_shape, teacher_taps_shape))
        for spot, (student_shape, teacher_shape) in enumerate(zip(*shapes_taken)):
            for side, shape in (("student", student_shape), ("teacher", teacher_shape)):
                self._check_shape(f"{side} tap {spot}", shape)
            if self.compares_classes or self.spots == "logits":
                self.check_classes(student_shape, teacher_shape)
            self.build_spot(spot, student_shape, teacher_shape)
        if self.preparation is not None:
            self.prepared = self.add_weight(
                shape=(),
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name="prepared",
            )

    def check_classes(self, student_shape, teacher_shape):
        """Raises a `UsageError` unless the shapes of the logits are those of the same classes."""
        if student_shape[1:] != teacher_shape[1:]:
            raise UsageError(
                f"Loss {self.name!r} compares logits class by class, and received student "
                f"logits {student_shape} and teacher logits {teacher_shape}: both models need "
                "the same classes. A teacher of others can teach by losses of features, such "
                "as 'fitnet'."
            )

    @classmethod
    def tap_ranks(cls):
        """Returns the ranks that taps may have when they are compared, a tuple; empty for any."""
        ranks = cls.tap_rank
        return ranks if isinstance(ranks, tuple) else () if ranks is None else (ranks,)

    @classmethod
    def tap_forms(cls):
        """Returns which taps the loss takes, in words."""
        if cls.compares_classes:
            return "logits (batch, classes)"
        forms = [FORMS[rank] for rank in cls.tap_ranks()]
        if cls._makes_maps():
            forms.append(f"{FORMS[3]} of a square number, a class token apart")
        return ", or ".join(forms) or "of any shape (batch, ...)"

    @classmethod
    def _makes_maps(cls):
        """Whether the loss compares maps and no tokens, so that these become maps."""
        return 4 in cls.tap_ranks() and 3 not in cls.tap_ranks()

    def taken(self, taps):
        """Returns taps in the form in which the loss compares them.

        All that gets taps uses it: `__call__`, and what overrides `preparation_loss`.

        Args:
            taps: List of tensors.

        Returns:
            A list of tensors: of a loss of maps that takes no tokens, square maps in place of
            tokens `(batch, tokens, features)`, see `numerics.tokens_as_map`; else the taps.
        """
        if not self._makes_maps():
            return list(taps)
        return [tokens_as_map(tap) if len(tap.shape) == 3 else tap for tap in taps]

    def shapes_taken(self, shapes):
        """Returns the shapes, a list of tuples, of what `taken` makes of taps of some shapes."""
        return [tuple(tap.shape) for tap in self.taken(map(keras.KerasTensor, shapes))]

    def _check_shape(self, what, shape):
        if self.compares_classes and len(shape) != 2:
            raise UsageError(
                f"Loss {self.name!r} needs taps that are {self.tap_forms()}; {what} has shape "
                f"{shape}: leave spots out, or take a loss of features, such as 'fitnet'."
            )
        ranks = self.tap_ranks()
        if len(shape) < 2 or (ranks and len(shape) not in ranks) or None in shape[1:]:
            raise UsageError(
                f"Loss {self.name!r} needs taps that are {self.tap_forms()}, of which all but the "
                f"batch is known; {what} has shape {shape}."
            )

    def match_labels(self, label_loss):
        """Adapts to the outputs that the loss on the labels expects; distillers call it.

        Args:
            label_loss: The `keras.losses.Loss` that the distiller is compiled with.

        Raises:
            UsageError: If this loss has no meaning beside it. By default, if it needs the class
                of each sample and the labels tell none.
        """
        if self.needs_labels and kind_of(label_loss) in (BINARY, REGRESSION):
            raise UsageError(
                f"Loss {self.name!r} needs the one class of each sample, and the labels of "
                f"{title_of(label_loss)} tell none: compile with a categorical "
                "cross-entropy, or take a loss that needs no labels."
            )

    def build_spot(self, spot, student_shape, teacher_shape):
        """Makes the connectors of one spot; by default there are none.

        Args:
            spot: Integer, the position of the spot.
            student_shape: Shape of the student's tap, batch included.
            teacher_shape: Shape of the teacher's tap.

        Raises:
            UsageError: If the loss cannot compare taps of these shapes.
        """

    def __call__(self, student_taps, teacher_taps, *args, **kwargs):
        """Computes the unweighted loss of taps as `call` gets them, and builds it before."""
        return super().__call__(self.taken(student_taps), self.taken(teacher_taps), *args, **kwargs)

    def call(self, student_taps, teacher_taps, labels=None, sample_mask=None, training=None):
        """Computes the unweighted loss.

        Args:
            student_taps: List of channels-last tensors `(batch, ...)`, one per spot.
            teacher_taps: List of the teacher's tensors at the same spots. No gradient reaches
                them, unless `teacher_gradient` is set.
            labels: Integer tensor `(batch,)`, or None where the loss needs none.
            sample_mask: None, a `(batch,)` tensor, or a list of one per spot. With zeros and ones
                it means the loss on the selected samples times the selected fraction. Losses
                that are a mean over samples also take any non-negative weights.
            training: Whether connectors run in training mode.

        Returns:
            A float32 scalar, the sum over the spots.

        Raises:
            UsageError: If labels are missing, or the masks do not fit the spots.
        """
        self.check_labels(labels)
        masks = self.masks_of_spots(sample_mask, len(student_taps))
        values = []
        for spot, (student, teacher, mask) in enumerate(zip(student_taps, teacher_taps, masks)):
            if self.compares_classes and mask is not None:
                # A softmax makes NaN gradients of logits that are not finite, counted or not.
                student, teacher = (
                    keep_selected(logits, selection(mask, logits)) for logits in (student, teacher)
                )
            if not self.teacher_gradient:
                teacher = ops.stop_gradient(teacher)
            values.append(self.compare(spot, student, teacher, labels, mask, training))
        return sum(values[1:], values[0])

    def check_labels(self, labels):
        """Raises a `UsageError` where the loss needs labels and there are none."""
        if self.needs_labels and labels is None:
            raise UsageError(f"Loss {self.name!r} needs the labels of the batch: pass labels=.")

    def masks_of_spots(self, sample_mask, spots):
        """Returns one mask per spot.

        Args:
            sample_mask: None, one mask for all spots, or a list of one per spot.
            spots: Integer, the number of spots.

        Returns:
            A list of `spots` masks, each a tensor `(batch,)` or None.

        Raises:
            UsageError: If a list has another length.
        """
        if not isinstance(sample_mask, (list, tuple)):
            return [sample_mask] * spots
        if len(sample_mask) != spots:
            raise UsageError(
                f"Loss {self.name!r} received {len(sample_mask)} masks for {spots} spots: pass "
                "one mask per spot, or a single one for all."
            )
        return list(sample_mask)

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        """Computes the loss of one spot.

        Args:
            spot: Integer, the position of the spot in the lists given to `call()`; it selects
                the connector where there is one per spot.
            student_tap: Float32 tensor `(batch, ...)`.
            teacher_tap: Float32 tensor `(batch, ...)`.
            labels: Integer tensor `(batch,)` or None.
            sample_mask: Tensor `(batch,)` or None.
            training: Whether connectors run in training mode.

        Returns:
            A float32 scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compare().")

    def preparation_loss(self, student_taps, teacher_taps, training=None):
        """Computes the objective of the stage before training.

        Args:
            student_taps: As in `call()`.
            teacher_taps: As in `call()`.
            training: Whether connectors run in training mode.

        Returns:
            A float32 scalar. By default the loss itself.
        """
        return self(student_taps, teacher_taps, training=training)

    @property
    def preparation_variables(self):
        """List of the loss's own variables that the stage before training updates."""
        return self.trainable_variables

    def compute_output_spec(self, *args, **kwargs):
        """Declares the float32 scalar that every loss returns."""
        return keras.KerasTensor((), dtype="float32")

    def get_config(self):
        """Returns what `from_config()` needs to make an equal loss."""
        spots = self.spots if isinstance(self.spots, str) else [list(pair) for pair in self.spots]
        weight = keras.saving.serialize_keras_object(self.weight)
        return {**super().get_config(), "weight": weight, "spots": spots}


def _check_spots(loss, spots):
    """Returns the spots as a word or a list of pairs of tap names."""
    if isinstance(spots, tuple) and len(spots) == 1 and isinstance(spots[0], str):
        (spots,) = spots  # A word as a flag of a config gives it.
    if isinstance(spots, str) and all(word in SPOTS for word in spots.split("+")):
        return spots
    pairs = spots if isinstance(spots, (list, tuple)) and spots else [None]
    for pair in pairs:
        names = pair if isinstance(pair, (list, tuple)) else ()
        if len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise UsageError(
                f"{loss}: spots={spots!r} must be one of {', '.join(SPOTS)}, or a list of pairs "
                "of tap names, [('student tap', 'teacher tap'), ...]."
            )
    return [tuple(pair) for pair in pairs]


def masked_mean(values, sample_mask):
    """Averages one value per sample, counting only selected samples.

    Args:
        values: Float tensor `(batch,)`.
        sample_mask: None, or `(batch,)` weights; 0/1 select.

    Returns:
        A scalar: `sum(mask * values) / batch`, which for a 0/1 mask equals the mean over the
        selected samples times the selected fraction. Samples of weight 0 contribute exactly 0
        to the value and to the gradient, even where their own value is not finite.
    """
    if sample_mask is not None:
        sample_mask = ops.cast(sample_mask, values.dtype)
        selected = sample_mask > 0
        values = ops.where(selected, values, ops.zeros_like(values)) * sample_mask
    return ops.mean(values)
