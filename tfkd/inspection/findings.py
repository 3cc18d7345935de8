"""The warnings of a report, one line each."""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment


def warnings(report):
    """Returns the warnings of a report.

    Args:
        report: A `CheckResult`.

    Returns:
        A list of strings, each with the problem and its remedy.
    """
    tests = (_own_steps, _augmentations, _size)
    if report.data["not_finite"]:
        # Values measured on such data are meaningless.
        tests = (_data_not_finite, *tests)
    else:
        tests += (
            _probabilities,
            _class_order,
            _near_chance,
            _student_preprocessing,
            _teacher_preprocessing,
            _student_not_finite,
            _teacher_not_finite,
            _normalization,
            _raw_inputs,
            _not_finite,
            _balance,
        )
    return [warning for test in tests if (warning := test(report)) is not None]


def _data_not_finite(report):
    examples = report.data["examples"]
    guilty = [
        f"the {name} of {count} of {examples} examples"
        for name, count in report.data["not_finite"].items()
    ]
    return (
        f"{' and '.join(guilty)} hold NaN or infinite values, which make every loss NaN: correct "
        "the data. Nothing else of it was judged."
    )


def _of_models(found):
    return " and ".join(f"{name!r} ({', '.join(parts)})" for name, parts in found.items())


def _own_steps(report):
    found = report.student["own_steps"]
    if not found:
        return None
    return (
        f"student {_of_models(found)} brings code for its own training that is not run, since the "
        "distiller's train_step trains it: add losses with add_loss in its layers, or make a "
        "method of it, a subclass of tfkd.Distiller."
    )


def _augmentations(report):
    found = report.student["augments"]
    # No other model sees the images of a student alone.
    if not found or (report.teacher is None and not report.student["peers"]):
        return None
    return (
        f"student {_of_models(found)} alters its images at random, and no other model sees them "
        "altered: move these layers into the data, in front of all models, as in "
        "dataset.map(lambda x, y: (layer(x, training=True), y))."
    )


def _shrinks(model):
    """Whether a model scales its inputs as if they were pixels from 0 to 255."""
    return 20 * model["entrance"]["std_at_weights"] < model["entrance"]["std"]


def _prepares_twice(model):
    return _shrinks(model) and model["entrance"]["largest"] <= 10


def _prepared_twice(role, model, remedy):
    """Returns the warning of a model that normalises what is normalised already, or None."""
    if model is None or not _prepares_twice(model):
        return None
    seen = model["entrance"]
    return (
        f"{role} {model['name']!r} scales pixels from 0 to 255 by itself, and gets images that are "
        f"normalised already: of a standard deviation of {seen['std']:.2g} it leaves "
        f"{seen['std_at_weights']:.2g} to its first weights. {remedy}"
    )


def _student_preprocessing(report):
    remedy = (
        "Give it pixels, as tfkd.data.load(..., normalize=False) does, or build it without its "
        "own preprocessing."
    )
    return _prepared_twice("student", report.student, remedy)


def _teacher_preprocessing(report):
    remedy = (
        "Give it pixels: teacher_preprocessing=tfkd.layers.TeacherPreprocessing(scale=255, "
        "student_mean=..., student_std=...)."
    )
    return _prepared_twice("teacher", report.teacher, remedy)


def _probabilities(report):
    guilty = [
        f"{role} {model['name']!r}"
        for role, model in (("teacher", report.teacher), ("student", report.student))
        if model is not None and model["outputs"] == "probabilities"
    ]
    if guilty:
        return (
            f"{' and '.join(guilty)} outputs probabilities, not logits: end it without a softmax, "
            "or every temperature and every loss on the outputs means something else."
        )
    return None


def _margin(accuracy, examples):
    """Three standard deviations of an accuracy measured on some examples."""
    return 3 * math.sqrt(accuracy * (1 - accuracy) / examples)


def _near_chance(report):
    if report.teacher is None or report.teacher["accuracy"] is None or _class_order(report):
        return None
    accuracy, chance = report.teacher["accuracy"], report.teacher["chance"]
    # Twice chance where there are many classes, a tenth above it where there are few, a fifth of
    # the rest where nearly all labels are alike.
    clear = min(chance, 0.1, (1 - chance) / 5)
    if accuracy < chance + max(clear, _margin(chance, report.data["decisions"])):
        return (
            f"teacher {report.teacher['name']!r} is right in {accuracy:.1%} of these examples, "
            f"which is near chance ({chance:.1%}): load its trained weights, give it the "
            "normalisation it was trained with (teacher_preprocessing), and its order of classes."
        )
    return None


def _class_order(report):
    if report.teacher is None:
        return None
    accuracy, reordered = report.teacher["accuracy"], report.teacher["reordered_accuracy"]
    if reordered is None:
        return None
    clear = max(0.1, _margin(0.5, report.data["examples"]))
    if reordered >= 0.5 and reordered - accuracy > clear:
        return (
            f"teacher {report.teacher['name']!r} is right in {accuracy:.1%} of these examples, "
            f"and in {reordered:.1%} with its classes in another order: give teacher and data "
            "the same order of classes."
        )
    return None


def _weights_not_finite(role, model):
    """Returns the warning of weights that are no numbers: a ReLU may hide them from the outputs."""
    if model["finite_weights"]:
        return None
    return (
        f"{role} {model['name']!r} has weights that are NaN or infinite, as after a training that "
        "diverged: load others."
    )


def _student_not_finite(report):
    return _weights_not_finite("student", report.student)


def _teacher_not_finite(report):
    teacher = report.teacher
    if teacher is None:
        return None
    if not teacher["finite_weights"]:
        return _weights_not_finite("teacher", teacher)
    if not math.isfinite(teacher["entrance"]["std"]):
        return (
            f"teacher {teacher['name']!r} gets images with NaN or infinite values, and the student "
            "does not: look at teacher_preprocessing."
        )
    return None


def _normalization(report):
    seen = None if report.teacher is None else report.teacher["normalization"]
    if seen is None or (seen["shift"] <= 1 and 0.5 <= seen["spread"] <= 2):
        return None
    if _teacher_not_finite(report):
        return None
    if _prepares_twice(report.teacher):
        return None
    if seen["on_the_way"]:
        return None
    # Statistics also differ where they are those of an earlier task, frozen. Then others in this
    # one layer do not help; against wrong images they do. Nothing else explains a factor of ten.
    accuracy, restored = report.teacher["accuracy"], seen["accuracy"]
    clear, found = max(0.1, _margin(0.5, report.data["examples"])), ""
    better = accuracy is not None and restored - accuracy > clear
    if not better and max(seen["shift"], seen["spread"]) <= 10:
        return None
    if better:
        found = (
            f"It is right in {accuracy:.1%} of these examples, and in {restored:.1%} with their "
            "own statistics there. "
        )
    return (
        f"teacher {report.teacher['name']!r} gets other images than in its training: at its first "
        f"batch normalization, {seen['layer']!r}, the mean is {seen['shift']:.2g} standard "
        f"deviations off and the standard deviation {seen['spread']:.2g} times that of training. "
        f"{found}Give it the normalisation it was trained with (teacher_preprocessing), and its "
        "weights."
    )


def _raw_inputs(report):
    inputs = report.data["inputs"]
    if (
        report.student["normalizes"]
        or _shrinks(report.student)
        or inputs["max"] <= 10
        or inputs["min"] < 0
    ):
        return None
    return (
        f"the student gets values from {inputs['min']:.3g} to {inputs['max']:.3g}, which look "
        "like raw pixels, and has no layer that normalises them: bring them to a mean of 0 and a "
        "standard deviation of 1, as tfkd.data.load does."
    )


def _size(report):
    # A recorded teacher has no parameters.
    if not report.teacher or not report.teacher["parameters"]:
        return None
    if report.student["parameters"] < report.teacher["parameters"]:
        return None
    return (
        f"student {report.student['name']!r} has {report.student['parameters']:,} parameters and "
        f"its teacher {report.teacher['parameters']:,}: a student is meant to be the smaller "
        "one; check that the two are not exchanged."
    )


def _not_finite(report):
    guilty = [
        name
        for name, loss in report.losses.items()
        if loss["value"] is not None and not math.isfinite(loss["value"])
    ]
    if guilty:
        return (
            f"{', '.join(guilty)} is not a finite number before training has begun: look for "
            "values in the data that are not, and for weights of the models that are not."
        )
    return None


def _balance(report):
    sizes = {
        name: abs(loss["weighted"])
        for name, loss in report.losses.items()
        if loss["value"] is not None and loss["weighted"] and math.isfinite(loss["weighted"])
    }
    if len(sizes) < 2:
        return None
    largest, second = sorted(sizes, key=sizes.get, reverse=True)[:2]
    if sizes[largest] <= 100 * sizes[second]:
        return None
    ratio = sizes[largest] / sizes[second]
    return (
        f"{largest}, weighted, is {ratio:.0f} times {second}, the next largest, which will hardly "
        f"take part: bring its weight from {report.losses[largest]['weight']:.4g} down to about "
        f"{report.losses[largest]['weight'] / ratio:.2g}."
    )


def binary_accuracy(labels, logits):
    """Returns how often yes-or-no predictions are right, and how often they would be by chance.

    Args:
        labels: Array `(examples, classes)`, above 0.5 for yes.
        logits: Array `(examples, classes)`, above 0 for yes.

    Returns:
        The tuple `(accuracy, chance)`, means over examples and classes. `chance` is what the same
        predictions would reach for examples that they do not belong to: most of it where nearly
        all labels of a class are alike.
    """
    truth, predicted = labels > 0.5, logits > 0
    yes, said = truth.mean(axis=0), predicted.mean(axis=0)
    return np.mean(truth == predicted), np.mean(yes * said + (1 - yes) * (1 - said))


def reordered_accuracy(labels, predictions, classes):
    """Returns the accuracy with the best assignment of predicted classes to labels.

    The assignment is chosen on one half of the examples and measured on the other, and the
    reverse: with many classes the best one for given examples fits them by chance.

    Args:
        labels: Integer array `(examples,)`.
        predictions: Integer array `(examples,)`.
        classes: Integer.

    Returns:
        A number in [0, 1].
    """
    hits = np.zeros(len(labels), bool)
    for half in (0, 1):
        chosen = np.arange(len(labels)) % 2 == half
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (predictions[chosen], labels[chosen]), 1)
        _, assigned = linear_sum_assignment(counts, maximize=True)
        hits[~chosen] = assigned[predictions[~chosen]] == labels[~chosen]
    return float(hits.mean())
