"""A loss that is no longer finite ends training: which part, and in which step, is told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import ops

import tfkd
from tfkd.errors import DivergenceError
from tfkd.losses import DistillationLoss
from tfkd.runs import checkpoint


class Poisoned(DistillationLoss):
    """Becomes NaN or infinite with the first batch whose samples are marked."""

    id = "poisoned_for_tests"
    spots = "logits"

    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def compare(self, spot, student_tap, teacher_tap, labels, sample_mask, training):
        # A teacher without weights hands marked images through.
        marked = ops.any(ops.abs(teacher_tap) > 100)
        return ops.where(marked, self.value, ops.mean((student_tap - teacher_tap) ** 2))


def teacher():
    """Its logits are the means of the channels, five times."""
    inputs = keras.Input(tiny.SHAPE)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(inputs)
    return keras.Model(inputs, keras.layers.Concatenate(name="logits")([pooled, pooled[:, :2]]))


def distiller(value=float("nan"), **settings):
    made = tfkd.KnowledgeDistiller(tiny.model(seed=1), teacher(), ["kd", Poisoned(value)])
    made.compile(tfkd.optimizers.SGD(0.001), **settings)
    return made


def data(marked_step, batches=120, marked_sample=0):
    """Batches of 4, the images of one of which are marked."""
    images, labels = tiny.data(4 * batches)
    # Small, but for the marked: the losses stay finite.
    images = 0.1 * images
    if marked_step is not None:
        images[4 * (marked_step - 1) + marked_sample] = 1000.0
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)


def message(made, train, **settings):
    with pytest.raises(DivergenceError) as stop:
        made.fit(train, verbose=0, **settings)
    assert "\n" not in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_part_and_step_are_told(value, jit_compile):
    made = distiller(value, jit_compile=jit_compile)
    told = message(made, data(7))
    assert "poisoned_for_tests_loss became NaN or infinite in epoch 1, step 7 of 120" in told


def test_training_ends_within_steps_and_before_validation():
    steps, tested = [], []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch),
        on_test_begin=lambda logs: tested.append(True),
        on_epoch_end=lambda epoch, logs: tested.append(True),
    )
    assert "step 3 of" in message(distiller(), data(3), callbacks=[seen])
    assert len(steps) <= 52
    assert "step 118 of" in message(
        distiller(), data(118), validation_data=data(None, 2), callbacks=[seen]
    )
    assert not tested


def test_the_epoch_is_told_and_steps_count_from_its_beginning():
    made = distiller()
    made.fit(data(None, 5), validation_data=data(None, 3), epochs=2, verbose=0)
    told = message(made, data(2, 5), initial_epoch=2, epochs=3)
    assert "epoch 3, step 2 of 5" in told


@pytest.mark.slow
def test_steps_per_execution():
    assert "step 6 of 20" in message(distiller(steps_per_execution=4), data(6, 20))


@pytest.mark.slow
def test_the_replica_does_not_matter():
    devices = [device.name for device in tf.config.list_logical_devices("CPU")][:2]
    assert len(devices) == 2
    with tfkd.runtime.strategy("mirrored", replicas=2).scope():
        made = distiller()
        # The last sample is the second replica's.
        told = message(made, data(4, 6, marked_sample=3))
    assert "poisoned_for_tests_loss became NaN or infinite in epoch 1, step 4 of 6" in told


def test_a_network_of_a_method_is_named_by_its_loss(monkeypatch):
    """What a method's own network minimises goes through `auxiliary_objective`."""
    students = [tiny.model(seed=seed, name=f"student{seed}") for seed in (1, 2)]
    made = tfkd.ACN(students, 0.0, 1.0, warm_up=0, generator_width=4, generator_blocks=1)
    made.compile(tfkd.optimizers.SGD(0.001), run_eagerly=True)
    monkeypatch.setattr(made, "tell_apart", lambda batch, images, divergent: None)
    monkeypatch.setattr(
        made.discriminator, "call", lambda x, training=None: np.nan * ops.sum(x, axis=(1, 2))
    )
    assert "adversarial_loss became NaN" in message(made, data(None, 2))


def test_loss_scaling_may_skip_steps():
    """A gradient that float16 cannot hold is no divergence."""
    keras.config.set_dtype_policy("mixed_float16")
    made = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(8, seed=2), ["kd"])
    optimizer = keras.optimizers.LossScaleOptimizer(
        tfkd.optimizers.SGD(0.001), initial_scale=2.0**60
    )
    made.compile(optimizer)
    made.fit(*tiny.data(16), batch_size=4, verbose=0)
    assert float(made.optimizer.dynamic_scale) < 2.0**60
    assert checkpoint.not_finite(made) is None


@pytest.mark.slow
def test_weights_that_are_not_finite_are_found():
    made = distiller()
    assert checkpoint.not_finite(made) is None
    variable = made.student.trainable_variables[0]
    variable.assign(np.full(variable.shape, np.inf))
    assert checkpoint.not_finite(made) == variable.path


def spoiled(part, value, step=7, batches=20, dtype="float32"):
    """Batches `(images, one-hot labels, sample weights)`, with one value that is not finite."""
    images, labels = tiny.data(4 * batches)
    arrays = {
        "inputs": images.astype(dtype),
        "labels": np.eye(tiny.CLASSES, dtype="float32")[labels],
        "sample weights": np.ones(4 * batches, "float32"),
    }
    arrays[part][4 * (step - 1) + 3] = value
    return tf.data.Dataset.from_tensor_slices(tuple(arrays.values())).batch(4)


def of_one_hot(**settings):
    made = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(8, seed=2), ["kd"])
    made.compile(
        tfkd.optimizers.SGD(0.001),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        **settings,
    )
    return made


@pytest.mark.parametrize(
    "part, value",
    [
        ("inputs", float("nan")),
        ("inputs", float("inf")),
        ("labels", float("nan")),
        ("sample weights", float("nan")),
    ],
)
def test_data_that_is_not_finite_is_to_blame(part, value):
    told = message(of_one_hot(), spoiled(part, value))
    assert told.startswith(f"The {part} of the training data hold NaN or infinite values")
    assert "in epoch 1, step 7 of 20" in told and "earning rate" not in told


def test_data_after_the_divergence_is_not_to_blame():
    marked = data(3, 20).concatenate(
        spoiled("inputs", float("nan")).map(lambda x, y, w: (x, tf.argmax(y, -1)))
    )
    told = message(distiller(), marked)
    assert "Training diverged: poisoned_for_tests_loss became NaN" in told and "step 3" in told


def test_large_float16_images_are_finite():
    """Their sum is not, in float16."""
    made = of_one_hot()
    made.fit(spoiled("inputs", 3e4, dtype="float16"), verbose=0)


def test_data_of_any_replica_is_to_blame():
    with tfkd.runtime.strategy("mirrored", replicas=2).scope():
        made = of_one_hot()
        # The last sample is the second replica's.
        told = message(made, spoiled("inputs", float("nan"), step=2, batches=3))
    assert told.startswith("The inputs of the training data") and "step 2 of 3" in told
