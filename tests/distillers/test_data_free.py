"""dafl and dfad: students that see no image of the data."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from scipy.special import log_softmax, softmax

import tfkd
from tfkd.config import default_config
from tfkd.errors import UsageError
from tfkd.layers import NoiseGenerator
from tfkd.runs.assemble import compile_distiller

SMALL = {"noise_size": 8, "generator_width": 4}


def make(kind, rate=0.0, generator_rate=0.0, **arguments):
    keras.utils.set_random_seed(0)
    models = tiny.model(seed=1), tiny.model(6, "teacher", seed=2)
    distiller = kind(*models, **SMALL, **arguments)
    distiller.compile(
        tfkd.optimizers.SGD(rate),
        metrics=["accuracy"],
        generator_optimizer=tfkd.optimizers.SGD(generator_rate),
        run_eagerly=True,
    )
    noise = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    distiller.draw_noise = lambda size: tf.constant(noise)[:size]
    return distiller


def generated(distiller, size):
    """The images of a step, and the logits of both models for them."""
    images = distiller.generator(distiller.draw_noise(size), training=True)
    teacher = {name: np.array(x, "float64") for name, x in distiller.run_teacher(images).items()}
    return images, np.array(distiller.student(images, training=True), "float64"), teacher


@pytest.mark.parametrize("kind, more", [(tfkd.DAFL, {}), (tfkd.DFAD, {"student_steps": 1})])
def test_neither_images_nor_labels_are_looked_at(kind, more):
    x, y = tiny.data(8)
    found = []
    for images, labels, weights in (
        (x, y, None),
        (np.full_like(x, np.nan), y * 0, np.zeros(len(y))),
    ):
        distiller = make(kind, rate=0.1, generator_rate=0.1, **more)
        teacher = tiny.values(distiller.teacher.variables)
        logs = distiller.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
        found.append((logs, tiny.values(distiller.variables)))
        tiny.assert_equal(tiny.values(distiller.teacher.variables), teacher)
    assert found[0][0] == found[1][0] and np.isfinite([*found[0][0].values()]).all()
    tiny.assert_equal(found[0][1], found[1][1])


def test_dafl_is_its_equations():
    distiller = make(tfkd.DAFL, one_hot_weight=0.5, activation_weight=0.1, temperature=2.0)
    _, student, teacher = generated(distiller, 12)
    logs = distiller.train_on_batch(*tiny.data(12), return_dict=True)
    logits = teacher["logits"]
    mean = softmax(logits, -1).mean(0)
    targets, own = log_softmax(logits / 2, -1), log_softmax(student / 2, -1)
    expected = {
        "one_hot_loss": -np.mean(log_softmax(logits, -1).max(-1)),
        "balance_loss": np.sum(mean * np.log10(mean)),
        "activation_loss": -np.mean(np.abs(teacher["pooled"])),
        "loss": 4 * np.mean(np.sum(np.exp(targets) * (targets - own), -1)),
        "accuracy": np.mean(student.argmax(-1) == logits.argmax(-1)),
    }
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_dfad_is_its_equation():
    distiller = make(tfkd.DFAD, student_steps=2)
    _, student, teacher = generated(distiller, 12)
    logs = distiller.train_on_batch(*tiny.data(12), return_dict=True)
    difference = np.mean(np.abs(student - teacher["logits"]))
    assert logs["loss"] == pytest.approx(difference, rel=1e-4)
    assert logs["difference"] == pytest.approx(difference, rel=1e-4)


def test_the_generator_of_dafl_goes_where_its_objective_is_smaller():
    distiller = make(tfkd.DAFL, generator_rate=0.05, balance_weight=1.0, one_hot_weight=1.0)
    student = tiny.values(distiller.student.trainable_variables)
    logs = [distiller.train_on_batch(*tiny.data(12), return_dict=True) for _ in range(6)]
    values = [one["one_hot_loss"] + one["balance_loss"] for one in logs]
    assert values[-1] < values[0] - 0.01
    tiny.assert_equal(tiny.values(distiller.student.trainable_variables), student)


@pytest.mark.parametrize("rates, sign", [((0.02, 0.0), -1), ((0.0, 0.5), 1)])
def test_student_and_generator_of_dfad_play_against_each_other(rates, sign):
    distiller = make(tfkd.DFAD, *rates, student_steps=1)
    logs = [distiller.train_on_batch(*tiny.data(12), return_dict=True) for _ in range(3)]
    assert sign * (logs[-1]["difference"] - logs[0]["difference"]) > 0


def test_the_student_of_dfad_takes_several_steps():
    distiller = make(tfkd.DFAD, 0.01, 0.01, student_steps=3)
    distiller.train_on_batch(*tiny.data(8))
    steps = [optimizer.iterations.numpy() for optimizer, _ in distiller.optimizers().values()]
    assert steps == [3, 1]
    # The learning rate of a run falls over all of them.
    config = default_config("dfad", "resnet14", "resnet8")
    config.schedule.name = "cosine"
    data = types.SimpleNamespace(steps_per_epoch=10, one_hot=False)
    compile_distiller(distiller, config, data, 2, 0.1)
    rates = [float(distiller.optimizer._learning_rate(step)) for step in (0, 30, 60)]
    assert rates == pytest.approx([0.1, 0.05, 0.0], abs=1e-6)


@pytest.mark.slow
def test_a_student_learns_without_data():
    """Of a teacher that knows two kinds of pictures."""
    random = np.random.default_rng(0)
    labels = np.arange(256) % 2
    images = random.normal(size=(256, 8, 8, 1)) * 0.3
    images[..., :4, 0] += np.where(labels, 1.5, -1.5)[:, None, None]
    images = ((images - images.mean()) / images.std()).astype("float32")

    def model(seed):
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(8, 3, 2, padding="same")(inputs)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.Conv2D(16, 4)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(2)(x), name=f"model{seed}")

    keras.utils.set_random_seed(1)
    teacher = model(0)
    trainer = tfkd.KnowledgeDistiller(teacher)
    trainer.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    trainer.fit(images, labels, epochs=5, verbose=0)
    for kind in (tfkd.DAFL, tfkd.DFAD):
        distiller = kind(model(1), teacher)
        distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
        data = distiller.without_data(batch_size=64, steps=30)
        logs = distiller.fit(data, validation_data=(images, labels), epochs=3, verbose=0).history
        assert logs["val_accuracy"][-1] > 0.9, kind


def test_pictures_show_what_the_generator_makes():
    distiller = make(tfkd.DAFL)
    names = [f"class{number}" for number in range(tiny.CLASSES)]
    before = tiny.values(distiller.variables)
    grid = distiller.epoch_pictures([], *tiny.data(2), names)["generated.png"]
    tiny.assert_equal(tiny.values(distiller.variables), before)
    (_, first, captions), (_, second, _) = grid.rows
    assert first.shape == second.shape == (8, 8, 8, 3) and set(captions) <= set(names)
    assert min(first.min(), second.min()) == 0 and max(first.max(), second.max()) == 1
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 9, 1), (28, 28, 1)])
def test_generated_images_are_normalized(shape):
    generator = NoiseGenerator(shape, width=4)
    images = np.array(generator(tf.random.normal((64, 5)), training=True), "float64")
    assert images.shape == (64, *shape) == generator.compute_output_shape((64, 5))
    whole = all(size % 4 == 0 for size in shape[:2])
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-3 if whole else 0.3)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1, atol=1e-2 if whole else 0.3)
    again = NoiseGenerator.from_config(generator.get_config())
    assert again.image_shape == shape and again.width == 4


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make(tfkd.DAFL, one_hot_weight=-1.0), "one_hot_weight must be a number of at"),
        (lambda: make(tfkd.DAFL, temperature=0.0), "temperature must be a number greater than 0"),
        (lambda: make(tfkd.DAFL, teacher_features="body"), "no tap 'body'"),
        (lambda: make(tfkd.DFAD, student_steps=0), "student_steps must be a whole number"),
        (lambda: tfkd.DFAD(tiny.model(), tiny.model(), noise_size=0), "noise_size must be a whole"),
        (lambda: NoiseGenerator((None, None, 3)), "of a fixed shape .height, width, channels."),
        (lambda: NoiseGenerator((5,)), "of a fixed shape"),
    ],
)
def test_mistakes(build, message):
    with pytest.raises(UsageError, match=message):
        build()
