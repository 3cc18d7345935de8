"""What `check` measures, of which data, and that looking changes nothing."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from checking import pixels

import tfkd
from tfkd.errors import UsageError


def test_nothing_is_wrong_with_a_trained_teacher(digits, plain):
    report = plain.check(digits.validation)
    assert report.warnings == []
    assert report.teacher["accuracy"] > 0.7 and report.teacher["outputs"] == "logits"
    assert report.teacher["normalization"]["spread"] == pytest.approx(1, abs=0.3)
    assert report.data["examples"] == digits.sizes["validation"]
    assert report.data["labels"] == (0, 9)


def test_values_are_those_of_the_losses():
    """The mean over unequal batches, with sample weights, in inference mode."""
    x, y = tiny.data(20)
    weights = np.linspace(0, 1, 20).astype("float32")
    student, teacher = tiny.model(seed=1, dropout=0.5), tiny.model(8, seed=2)
    loss = tfkd.losses.get("kd", weight=0.5)
    distiller = tfkd.KnowledgeDistiller(student, teacher, [loss, tiny.Hint(weight=0.0)], 0.25)
    distiller.compile("sgd")
    report = distiller.check(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8))
    logits = student(x)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = report.losses["student_loss"]
    assert found["value"] == pytest.approx(float(cross_entropy(y, logits, weights)), rel=1e-4)
    assert found["weighted"] == pytest.approx(0.25 * found["value"])
    expected = float(loss([logits], [teacher(x)], sample_mask=weights))
    assert report.losses["kd_loss"]["value"] == pytest.approx(expected, rel=1e-4)
    assert report.losses["kd_loss"]["weight"] == 0.5
    assert report.losses["hint_for_tests_loss"]["spots"] == [
        ("stage2", (4, 4, 8), "stage2", (4, 4, 16))
    ]
    assert report.student["accuracy"] == np.mean(np.argmax(logits, -1) == y)
    assert report.student["parameters"] == student.count_params()
    # Arrays are taken as in `fit`, in whatever form.
    for arguments in ((x, y, weights), ((x, y, weights),), ([x, y, weights],)):
        again = distiller.check(*arguments, batch_size=8)
        assert again.losses["student_loss"]["value"] == pytest.approx(found["value"], rel=1e-4)
        assert again.student["accuracy"] == report.student["accuracy"]
    one_hot = tf.data.Dataset.from_tensor_slices((x, np.eye(5)[y].astype("float32"))).batch(8)
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    again = distiller.check(one_hot)
    assert again.student["accuracy"] == report.student["accuracy"]
    assert again.losses["student_loss"]["value"] == pytest.approx(
        float(cross_entropy(y, logits)), rel=1e-4
    )


def test_the_table_shows_every_value(digits, teacher, plain):
    report = plain.check(pixels(digits, 255))
    text = str(report)
    for line in (
        f"teacher  resnet14  {teacher.count_params():,}",
        f"{report.student['accuracy']:.2%}",
        "stage3 2x2x64 -> stage3 2x2x64",
        f"{report.losses['kd_loss']['value']:.4g}",
        *(f"\nwarning: {warning}" for warning in report.warnings),
    ):
        assert line in text
    assert max(map(len, text.split("\nwarning")[0].splitlines())) <= 100


def state(distiller):
    """Every number that a distiller holds, and every random state."""
    optimizer_variables = [v for o, _ in distiller.optimizers().values() for v in o.variables]
    variables = [*distiller.variables, *distiller.teacher.variables, *optimizer_variables]
    generator = keras.src.random.seed_generator.global_seed_generator()
    return [np.array(v) for v in (*variables, generator.state)], random.getstate()


def contrastive_distiller(*more):
    """One whose losses remember examples and draw others."""
    keras.utils.set_random_seed(0)
    x, y = tiny.data(16)
    contrastive = tfkd.losses.get("crd", negatives=4)
    contrastive.set_examples(y)
    student, teacher = tiny.model(seed=1, dropout=0.5), tiny.model(8, seed=2)
    distiller = tfkd.KnowledgeDistiller(student, teacher, ["kd", contrastive, *more])
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    distiller.build_optimizers()
    return distiller, x, {"label": y, "index": np.arange(16)}


@pytest.mark.parametrize("indices", [True, False])
def test_nothing_changes(indices):
    """Not even memory and draws of crd; ft is checked as it is before its preparation."""
    distiller, x, labels = contrastive_distiller("ft")
    distiller.test_on_batch(x, labels)
    before, python = state(distiller)
    labels = labels if indices else labels["label"]
    report = distiller.check(tf.data.Dataset.from_tensor_slices((x, labels)).batch(8))
    assert (report.losses["crd_loss"]["value"] is None) == (not indices)
    assert ("needs indices" in str(report)) == (not indices)
    after, python_after = state(distiller)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert python == python_after
    assert len(distiller.preparations()) == 1


def test_training_goes_on_as_if_nothing_had_been_looked_at():
    found = []
    for checks in (False, True):
        distiller, x, labels = contrastive_distiller()
        for _ in range(2):
            distiller.train_on_batch(x, labels)
            if checks:
                distiller.check([(x, labels)])
        found.append(state(distiller)[0])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_replicas_give_what_one_gives():
    x, y = tiny.data(16)
    values = []
    for replicas in (1, 2):
        with tfkd.runtime.strategy("auto", replicas).scope():
            distiller = tfkd.KnowledgeDistiller(
                tiny.model(seed=1), tiny.model(8, seed=2), ["kd", "rkd"]
            )
            distiller.compile("sgd")
            report = distiller.check(tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
        values.append([loss["value"] for loss in report.losses.values()])
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_a_distiller_without_a_teacher_is_checked_too():
    distiller = tfkd.KnowledgeDistiller(tiny.model())
    distiller.compile("sgd")
    x, y = tiny.data(8)
    report = distiller.check([(x, y)])
    assert report.teacher is None and list(report.losses) == ["student_loss"]


class Batches(keras.utils.PyDataset):
    """Batches by number, which never end by themselves."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        x, y = tiny.data(8)
        return x, y


@pytest.mark.parametrize(
    "arguments, examples",
    [
        (tiny.data(40), 40),
        ((tiny.data(40),), 40),
        ((tiny.data(40)[0], tiny.data(40)[1].tolist()), 40),
        (tuple(map(tf.constant, tiny.data(40))), 40),
        ((tiny.data(40)[0], {"label": tiny.data(40)[1], "index": np.arange(40)}), 40),
        (([tiny.data(8), tiny.data(8)],), 16),
        ((tuple([tiny.data(8)] * 3),), 24),
        ((Batches(),), 16),
    ],
)
def test_data_comes_in_all_forms_of_fit(arguments, examples):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    assert distiller.check(*arguments).data["examples"] == examples


def test_arrays_sorted_by_class_are_looked_at_in_all_classes():
    x, _ = tiny.data(100)
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    report = distiller.check(x, np.repeat(np.arange(5), 20), batches=2, batch_size=8)
    assert report.data["examples"] == 16 and report.data["labels"] == (0, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((tiny.data(8)[0], np.arange(4)), r"as many labels as inputs; received \{'inputs': 8, 'l"),
        (([np.ones((4, 8, 8, 3)), np.ones((4, 2))], np.arange(4)), "one array of inputs"),
        (({"a": np.ones((4, 2)), "b": np.ones((4, 2))}, np.arange(4)), "one tensor of images"),
        ((tf.data.Dataset.range(3), 5), "y beside an array; .*Dataset brings .* batches=..."),
    ],
)
def test_arrays_that_cannot_be_checked(arguments, message):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    with pytest.raises(UsageError, match=message):
        distiller.check(*arguments)


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "at least one batch; the data set has none"),
        ([({"a": np.ones(4), "b": np.ones(4)}, np.arange(4))], "one tensor of images per batch"),
        ([tiny.data(4)[0]], r"check needs batches \(inputs, labels\)"),
        ([(tiny.data(4)[0], np.array([0, 1, 2, 5]))], "label 5, and student 'tiny' has 5 classes"),
        ([(tiny.data(4)[0], np.array([0, 1, -1, 4]))], "label -1, and student"),
    ],
)
def test_data_that_cannot_be_checked(data, message):
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    with pytest.raises(UsageError, match=message):
        distiller.check(data)


def test_a_distiller_that_is_not_ready():
    x, y = tiny.data(4)
    with pytest.raises(UsageError, match="Compile the distiller first"):
        tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1)).check([(x, y)])
    loss = tfkd.losses.get("fitnet", spots=[("body", "stage1")])
    distiller = tfkd.KnowledgeDistiller(tiny.Subclassed(), tiny.model(8, seed=1), [loss])
    distiller.compile("sgd")
    with pytest.raises(UsageError, match="call the distiller on a batch first"):
        distiller.check([(x, y)])
    distiller(x)
    spots = distiller.check([(x, y)]).losses["fitnet_loss"]["spots"]
    assert spots == [("body", (8, 8, 4), "stage1", (8, 8, 8))]
