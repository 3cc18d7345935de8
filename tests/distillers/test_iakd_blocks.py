"""Where two models are cut, and which part of one stands for which of the other."""

import keras
import pytest
import tiny

from tfkd import models
from tfkd.distillers.blocks import cut, cut_points
from tfkd.errors import UsageError


def zoo(name):
    return models.create(name, num_classes=5)


STAGES = {
    # student, teacher: the ends of their blocks, and the numbers of transitions
    ("resnet20", "resnet8"): (3, 0),
    ("wrn_40_2", "wrn_16_2"): (3, 0),
    ("resnet56", "resnet20"): (3, 0),
    ("resnet20", "wrn_16_1"): (3, 0),
    ("vgg13", "vgg8"): (4, 0),
    ("resnet32x4", "resnet8x4"): (3, 0),
    # Other widths, and here other sizes too.
    ("wrn_40_2", "resnet8"): (3, 5),
    ("resnet50", "vgg8"): (4, 7),
}


@pytest.mark.parametrize("teacher, student", list(STAGES))
def test_stages_of_the_published_pairs(teacher, student):
    student, teacher = zoo(student), zoo(teacher)
    cuts = cut_points(student, teacher)
    parts = cut(student, teacher, cuts, "float32")
    found = (len(parts.blocks), sum(len(block.transitions) for block in parts.blocks))
    assert found == STAGES[teacher.name, student.name]
    assert cuts[0] == ("stem", "stem") and cuts[-1][0] == parts.blocks[-1].name
    weights = [*parts.stem.weights, *parts.classifier.weights]
    weights += [weight for block in parts.blocks for weight in block.student.weights]
    assert {id(weight) for weight in weights} == {id(weight) for weight in student.weights}
    assert len(weights) == len(student.weights)


UNITS = {
    # teacher, student: how many of the teacher's units stand for each of a stage's
    ("resnet56", "resnet20"): [3, 3, 3],
    ("wrn_40_2", "wrn_16_2"): [3, 3],
    ("resnet20", "resnet8"): [3],
    ("resnet20", "wrn_16_1"): [1, 2],
    ("resnet32x4", "resnet8x4"): [5],
}


@pytest.mark.parametrize("teacher, student", list(UNITS))
def test_units_of_the_teacher_are_shared_out(teacher, student):
    cuts = cut_points(zoo(student), zoo(teacher), "unit")
    sizes = UNITS[teacher, student]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    expected = [("stem", "stem")]
    for stage in (1, 2, 3):
        for unit, end in enumerate(ends, start=1):
            ours = f"stage{stage}" + (f"_unit{unit}_output" if unit < len(sizes) else "")
            theirs = f"stage{stage}" + (f"_unit{end}_output" if end < ends[-1] else "")
            expected.append((ours, theirs))
    assert cuts == expected


def unnamed(filters):
    """Residual stages of a model that has none of the zoo's names."""
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for width in filters:
        x = keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu")(x)
        for _ in range(2):
            x = x + keras.layers.Conv2D(width, 3, padding="same")(x)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def test_models_without_the_zoos_names():
    student, teacher = unnamed((4, 6, 8)), unnamed((4, 8, 8))
    for granularity, blocks in (("stage", 2), ("unit", 4)):
        cuts = cut_points(student, teacher, granularity)
        assert len(cut(student, teacher, cuts, "float32").blocks) == blocks


def any_size(width):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(width, 3, name="first")(inputs)
    x = keras.layers.Conv2D(width, 3, name="second")(x)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def test_images_of_any_size():
    cuts = [("first", "first"), ("second", "second")]
    parts = cut(any_size(4), any_size(4), cuts, "float32")
    assert not parts.blocks[0].transitions
    with pytest.raises(UsageError, match="both need a fixed size of images"):
        cut(any_size(4), any_size(6), cuts, "float32")


WRONG = {
    "stages": (
        ("resnet8", "vgg8"),
        {},
        "cut at 4 places .*teacher at 5 .*pass blocks=.*suggest_pairs",
    ),
    "no units": (("vgg8", "vgg13"), {"granularity": "unit"}, "no residual units"),
    "fewer units": (
        ("resnet20", "resnet8"),
        {"granularity": "unit"},
        "'stage1' the student has 3 residual units, and the teacher only 1 .*granularity='stage'",
    ),
    "no pairs": (("resnet8", "resnet8"), {"blocks": ["stage1", "stage2"]}, "at least two pairs"),
    "one pair": (("resnet8", "resnet8"), {"blocks": [("stem", "stem")]}, "at least two pairs"),
    "no tap": (
        ("resnet8", "resnet8"),
        {"blocks": [("stem", "stem"), ("stage1", "stage9")]},
        "no tap 'stage9'",
    ),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_wrong_cuts_are_one_line(mistake):
    (student, teacher), arguments, message = WRONG[mistake]
    with pytest.raises(UsageError, match=message):
        cut_points(zoo(student), zoo(teacher), **arguments)


def test_a_cut_that_a_connection_bypasses():
    student = zoo("resnet8")
    cuts = [("stem", "stem"), ("stage1_unit1_relu1", "stage1")]
    with pytest.raises(UsageError, match="Every path must pass"):
        cut(student, zoo("resnet20"), cuts, "float32")


def test_a_subclassed_teacher():
    with pytest.raises(UsageError, match="teacher .* is subclassed"):
        cut_points(tiny.model(), tiny.Subclassed())
