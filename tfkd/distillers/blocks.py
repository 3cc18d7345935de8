"""Cuts student and teacher into blocks that can replace each other."""

import contextlib
import dataclasses

import keras
import tensorflow as tf
from keras import ops

from tfkd import runtime, taps
from tfkd.errors import UsageError, check_one_of
from tfkd.layers import Adapter
from tfkd.training.statistics import statistics

GRANULARITIES = ("stage", "unit")


@dataclasses.dataclass
class Block:
    """A part of the student and the part of the teacher that can replace it.

    Attributes:
        name: The student's tap at which it ends.
        student: The student's part, a `keras.Model` that shares the student's layers.
        teacher: The teacher's part.
        enter: `Adapter` from the student's features to the teacher's, before the teacher's part;
            None where they have one shape.
        leave: `Adapter` back, after the teacher's part; or None.
        by_batch: Whether the teacher's part normalizes by the statistics of the batch.
        regularizes: Whether the student's part has noted activity regularization as it ran.
    """

    name: str
    student: keras.Model
    teacher: keras.Model
    enter: Adapter
    leave: Adapter
    by_batch: bool = False
    regularizes: bool = False

    @property
    def transitions(self):
        """The adapters, as a list."""
        return [adapter for adapter in (self.enter, self.leave) if adapter is not None]

    def run(self, kept, features):
        """Runs the student's part in training mode, or the teacher's in inference mode.

        The adapters around the teacher's run in training mode.

        Args:
            kept: Boolean, whether the student's part runs.
            features: Tensor, what the block before returned.

        Returns:
            The tuple `(features, activity)` of the features and the activity regularization of
            the student's part, 0.0 of the teacher's.
        """
        if kept:
            features = self.student(features, training=True)
            activity = runtime.take_activity_losses(self.student)
            self.regularizes = self.regularizes or tf.is_tensor(activity)
            return features, tf.convert_to_tensor(activity)
        if self.enter is not None:
            features = self.enter(features, training=True)
        with runtime.batch_statistics(self.teacher) if self.by_batch else contextlib.nullcontext():
            features = self.teacher(features, training=False)
        if self.leave is not None:
            features = self.leave(features, training=True)
        return ops.cast(features, self.student.outputs[0].dtype), tf.zeros(())

    def student_statistics(self):
        """Returns the variables that the student's part updates as it runs."""
        return statistics([self.student])

    def teacher_statistics(self):
        """Returns the variables that the adapters update as they run."""
        return statistics(self.transitions)


@dataclasses.dataclass
class Parts:
    """The parts of the student, with the blocks that can be the teacher's.

    Attributes:
        stem: The student's part before the first block, a `keras.Model`.
        blocks: List of `Block`.
        classifier: The student's part after the last block.
    """

    stem: keras.Model
    blocks: list
    classifier: keras.Model


def cut_points(student, teacher, granularity="stage", blocks=None):
    """Returns where both models are cut.

    Args:
        student: A functional `keras.Model`.
        teacher: A functional `keras.Model`.
        granularity: `"stage"`, a block is everything at one resolution; or `"unit"`, a block is a
            residual unit of the student, and of the teacher as many units as its stage has for
            each: unit `i` of `m` stands against the units from `floor(i · M / m)` to
            `floor((i + 1) · M / m) - 1` of `M`.
        blocks: `[(student tap, teacher tap), ...]`, the cuts themselves, in place of these.

    Returns:
        `[(student tap, teacher tap), ...]`, of which the first ends the stem.

    Raises:
        UsageError: If a model cannot be cut, or the two do not fall into as many blocks.
    """
    for role, model in (("student", student), ("teacher", teacher)):
        if taps.output(model) is None:
            raise UsageError(
                f"Swapping blocks needs models that can be cut: {role} {model.name!r} is "
                "subclassed, so that its connections are Python code; a functional model whose "
                "layers are its parts can be cut."
            )
    check_one_of("granularity", granularity, GRANULARITIES)
    if blocks is not None:
        return _given(student, teacher, blocks)
    ends = [taps.boundaries(model) for model in (student, teacher)]
    if len(ends[0]) != len(ends[1]):
        raise UsageError(
            f"The student is cut at {len(ends[0])} places ({', '.join(ends[0])}), the teacher at "
            f"{len(ends[1])} ({', '.join(ends[1])}), and blocks lie between them: pass "
            "blocks=[('student tap', 'teacher tap'), ...], the first of which ends the stem, or "
            "blocks=tfkd.taps.suggest_pairs(student, teacher)."
        )
    if len(ends[0]) < 2:
        raise UsageError(
            f"Models {student.name!r} and {teacher.name!r} have no stage after their first: pass "
            "blocks=[('student tap', 'teacher tap'), ...]."
        )
    cuts = list(zip(*ends))
    if granularity == "stage":
        return cuts
    refined = cuts[:1]
    for before, after in zip(cuts, cuts[1:]):
        refined += _paired_units(student, teacher, before, after)
    return refined


def _given(student, teacher, blocks):
    """Checks the cuts that a user passes."""
    pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in blocks]
    strings = all(len(pair) == 2 and all(isinstance(tap, str) for tap in pair) for pair in pairs)
    if len(pairs) < 2 or not strings:
        raise UsageError(
            "blocks must be at least two pairs [('student tap', 'teacher tap'), ...], between "
            f"which the blocks lie; received {blocks!r}."
        )
    for model, names in zip((student, teacher), zip(*pairs)):
        taps.check(model, names)
    return pairs


def _paired_units(student, teacher, before, after):
    """Returns the cuts after each of the student's units in a stage."""
    ours, theirs = (
        taps.units(model, *limits) for model, limits in zip((student, teacher), zip(before, after))
    )
    if len(theirs) < len(ours):
        raise UsageError(
            f"Up to {after[0]!r} the student has {len(ours)} residual units, and the teacher only "
            f"{len(theirs)} up to {after[1]!r}: use granularity='stage', or pass blocks."
        )
    last = [(i + 1) * len(theirs) // len(ours) - 1 for i in range(len(ours))]
    return [(end, theirs[i]) for end, i in zip(ours, last)]


def cut(student, teacher, cuts, dtype, by_batch=False):
    """Cuts both models.

    Args:
        student: A functional `keras.Model`.
        teacher: A functional `keras.Model`.
        cuts: As from `cut_points`.
        dtype: The dtype policy of the adapters.
        by_batch: Whether the teacher's parts normalize by the statistics of the batch.

    Returns:
        The `Parts`. They are no Keras layer, so that nothing of the teacher is saved with them.

    Raises:
        UsageError: If there is no model between two cuts, or no adapter for its shapes.
    """
    blocks = []
    for (student_start, teacher_start), (student_end, teacher_end) in zip(cuts, cuts[1:]):
        ours = taps.segment(student, student_start, student_end)
        theirs = taps.segment(teacher, teacher_start, teacher_end)
        enter = _adapter(ours.inputs[0], theirs.inputs[0], student_start, dtype)
        leave = _adapter(theirs.outputs[0], ours.outputs[0], student_end, dtype)
        blocks.append(Block(student_end, ours, theirs, enter, leave, by_batch))
    stem = taps.segment(student, None, cuts[0][0])
    return Parts(stem, blocks, taps.segment(student, cuts[-1][0]))


def inherit_ends(parts, teacher, cuts):
    """Copies the weights of the teacher's stem and classifier into the student's.

    Args:
        parts: The `Parts`.
        teacher: A functional `keras.Model`.
        cuts: As from `cut_points`.

    Raises:
        UsageError: If the layers of the two differ.
    """
    ends = {
        "stem": (parts.stem, taps.segment(teacher, None, cuts[0][1])),
        "classifier": (parts.classifier, taps.segment(teacher, cuts[-1][1])),
    }
    for name, (ours, theirs) in ends.items():
        if _listed(ours) != _listed(theirs):
            raise UsageError(
                f"inherit=True copies the teacher's {name}, which differs from the student's: the "
                f"student has {_listed(ours)}, the teacher {_listed(theirs)}."
            )
    for ours, theirs in ends.values():
        ours.set_weights(theirs.get_weights())


def _listed(part):
    """Returns names and shapes of a part's weights, as text."""
    return ", ".join(f"{v.name} {tuple(v.shape)}" for v in part.weights) or "no weights"


def _adapter(source, target, place, dtype):
    """Returns a built adapter without bias and activation; None where shapes are equal."""
    source, target = tuple(source.shape[1:]), tuple(target.shape[1:])
    if source == target:
        return None
    if None in source + target:
        raise UsageError(
            f"At {place!r} the models have features of shapes {source} and {target}: to bring one "
            "to the other, both need a fixed size of images."
        )
    adapter = Adapter(target, activation=None, use_bias=False, dtype=dtype)
    adapter.build((None, *source))
    return adapter
