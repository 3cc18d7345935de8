"""Why tfkd has a distiller of its own: what `keras.distillation.Distiller` gets wrong, pinned.

Each test holds on to one behaviour of the installed Keras, numbered as in our survey of its
version 3.15.1, and shows next to it that `tfkd.KnowledgeDistiller` does right on the same models
and data. A test that fails inside of `pinned` is good news: Keras has changed, and the message
names the part of tfkd that may have become superfluous. Once K1 to K8 are mended, ask whether
`tfkd.Distiller` should build on Keras' own.

Left out are K11, about KerasTuner, and K17, what works.
"""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers
from keras.distillation import FeatureDistillation, LogitsDistillation

import tfkd
from tfkd.errors import UsageError
from tfkd.runs import checkpoint

RATE = 0.1
TEMPERATURE = 3.0

# The feature extractors of keras.distillation are given a tensor where they expect a list of one.
pytestmark = pytest.mark.filterwarnings("ignore:The structure of `inputs`")


@contextlib.contextmanager
def pinned(defect, part):
    """Turns a failure inside into the news that Keras has changed, and what that may spare us."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(
            f"{defect}: keras.distillation in Keras {keras.__version__} does not behave as it did "
            f"in 3.15.1. If it has been mended, unpin it here and see whether we still need: {part}"
        ) from error


def linear(seed, regularizer=None):
    """A model whose gradients can be written down: one dense layer."""
    inputs = keras.Input(tiny.SHAPE)
    initializer = keras.initializers.HeNormal(seed)
    dense = layers.Dense(
        tiny.CLASSES, kernel_initializer=initializer, kernel_regularizer=regularizer
    )
    return keras.Model(inputs, dense(layers.Flatten()(inputs)))


def kernel_step(logit_gradient):
    """Returns the step that a gradient of the logits `(8, classes)` makes in a linear model."""
    x, _ = tiny.data(8)
    return -RATE * x.reshape(8, -1).T @ logit_gradient


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, "float64"))
    return exponentials / exponentials.sum(-1, keepdims=True)


def knowledge_distillation(student_logits, teacher_logits, temperature):
    """KL · temperature², by hand."""
    q, p = (softmax(logits / temperature) for logits in (student_logits, teacher_logits))
    return np.sum(p * np.log(p / q), axis=-1).mean() * temperature**2


def keras_distiller(student, teacher, loss, student_loss_weight=0.1, **compile_arguments):
    distiller = keras.distillation.Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=[loss],
        student_loss_weight=student_loss_weight,
    )
    return compiled(distiller, **compile_arguments)


def tfkd_distiller(student, teacher, loss="kd", student_loss_weight=0.1, **compile_arguments):
    distiller = tfkd.KnowledgeDistiller(student, teacher, [loss], student_loss_weight)
    return compiled(distiller, **compile_arguments)


def compiled(distiller, momentum=0.0, **compile_arguments):
    distiller.compile(
        keras.optimizers.SGD(RATE, momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **compile_arguments,
    )
    return distiller


def update(distiller, **arguments):
    """Trains on one batch; returns the changes of the student's variables and the logs."""
    before = distiller.student.get_weights()
    logs = distiller.train_on_batch(*tiny.data(8), return_dict=True, **arguments)
    after = distiller.student.get_weights()
    return [new - old for new, old in zip(after, before, strict=True)], logs


def run_by(model):
    """Returns a list that grows by one whenever `model` runs, eagerly."""
    layer = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    runs, call = [], layer.call

    def counting(*args, **kwargs):
        runs.append(1)
        return call(*args, **kwargs)

    layer.call = counting
    return runs


def first_batch_normalization(student, x):
    """Returns the layer, and the mean over a batch of what it takes."""
    layer = next(each for each in student.layers if isinstance(each, layers.BatchNormalization))
    return layer, np.mean(keras.Model(student.input, layer.input)(x), axis=(0, 1, 2))


def test_k1_the_default_logits_loss_is_not_knowledge_distillation():
    """Keras 3.15: "kl_divergence" is taken of the raw logits, without softmax and squared
    temperature, and those outside of [0, temperature] get no gradient; tfkd: KL · temperature²."""
    x, _ = tiny.data(8)
    student_logits, teacher_logits = (linear(seed)(x).numpy() for seed in (1, 2))
    right = knowledge_distillation(student_logits, teacher_logits, TEMPERATURE)
    p, q = (np.clip(z / TEMPERATURE, 1e-7, 1) for z in (teacher_logits, student_logits))
    wrong = np.sum(p * np.log(p / q), axis=-1).mean()
    assert abs(wrong - right) > 0.5 * right

    def logit_gradient(loss):
        logits = tf.Variable(student_logits)
        with tf.GradientTape() as tape:
            value = loss.compute_loss(tf.constant(teacher_logits), logits)
        return tape.gradient(value, logits).numpy()

    with pinned("K1", "the warning in the docstring of KerasDistillationLoss"):
        loss = LogitsDistillation(TEMPERATURE)
        _, logs = update(keras_distiller(linear(1), linear(2), loss))
        assert logs["distillation_loss"] == pytest.approx(wrong, rel=1e-4)
        clipped = (student_logits < 0) | (student_logits > TEMPERATURE)
        np.testing.assert_array_equal(logit_gradient(loss) == 0, clipped)
        assert clipped.mean() > 0.3
    loss = tfkd.losses.get("kd", temperature=TEMPERATURE)
    _, logs = update(tfkd_distiller(linear(1), linear(2), loss))
    assert logs["kd_loss"] == pytest.approx(right, rel=1e-4)
    p, q = (softmax(logits / TEMPERATURE) for logits in (teacher_logits, student_logits))
    expected = (q - p) * TEMPERATURE / len(x)
    np.testing.assert_allclose(logit_gradient(loss), expected, rtol=1e-3, atol=1e-6)


def on_two_replicas(make_distiller, loss):
    """Returns the change of the student's kernel in one step on two replicas, and the logs."""
    with tfkd.runtime.strategy("mirrored", 2).scope():
        distiller = make_distiller(linear(1), linear(2), loss(), student_loss_weight=0.0)
    before = distiller.student.get_weights()[0]
    logs = distiller.fit(*tiny.data(8), batch_size=8, shuffle=False, verbose=0).history
    return distiller.student.get_weights()[0] - before, {k: v[0] for k, v in logs.items()}


def mean_squared_error_by_hand():
    """Returns the mean squared error of the logits, and the step that it makes in the kernel."""
    x, _ = tiny.data(8)
    difference = linear(1)(x).numpy() - linear(2)(x).numpy()
    return np.mean(difference**2), kernel_step(2 * difference / difference.size)


def test_k2_losses_are_not_scaled_for_several_replicas():
    """Keras 3.15: on N replicas a loss given by name or as a function trains N times as fast and
    logs N times its value, and one given as an object logs 1/N; tfkd: as on one replica."""
    value, step = mean_squared_error_by_hand()
    with pinned("K2", "Distiller.objective, the one place where losses are scaled"):
        kernel, logs = on_two_replicas(keras_distiller, FeatureDistillation)
        np.testing.assert_allclose(kernel, 2 * step, rtol=1e-3, atol=1e-6)
        assert logs["loss"] == pytest.approx(2 * value, rel=1e-4)
        kernel, logs = on_two_replicas(
            keras_distiller, lambda: FeatureDistillation(keras.losses.MeanSquaredError())
        )
        np.testing.assert_allclose(kernel, step, rtol=1e-3, atol=1e-6)
        assert logs["distillation_loss"] == pytest.approx(value / 2, rel=1e-4)
    kernel, logs = on_two_replicas(tfkd_distiller, FeatureDistillation)
    np.testing.assert_allclose(kernel, step, rtol=1e-3, atol=1e-6)
    assert [logs["loss"], logs["distillation_loss"]] == pytest.approx([value] * 2, rel=1e-4)


def test_k2_losses_given_as_objects_are_scaled_once():
    value, step = mean_squared_error_by_hand()
    kernel, logs = on_two_replicas(
        tfkd_distiller, lambda: FeatureDistillation(keras.losses.MeanSquaredError())
    )
    np.testing.assert_allclose(kernel, step, rtol=1e-3, atol=1e-6)
    assert logs["distillation_loss"] == pytest.approx(value, rel=1e-4)


def test_k3_regularizers_are_dropped():
    """Keras 3.15: weight decay by a kernel regularizer has no effect, to the last bit; tfkd: L2
    adds 2 · factor · kernel to the gradient."""
    factor = 10.0

    def kernels(make_distiller):
        return [
            update(make_distiller(linear(1, regularizer), linear(2), LogitsDistillation()))[0][0]
            for regularizer in (None, keras.regularizers.L2(factor))
        ]

    with pinned("K3", "Distiller._regularization"):
        plain, regularized = kernels(keras_distiller)
        np.testing.assert_array_equal(plain, regularized)
        assert np.any(plain)
    plain, regularized = kernels(tfkd_distiller)
    expected = -RATE * 2 * factor * linear(1).get_weights()[0]
    np.testing.assert_allclose(regularized - plain, expected, rtol=1e-4, atol=1e-6)


def stage1(loss="mse"):
    return FeatureDistillation(loss, "stage1", "stage1")


def test_k4_evaluation_changes_the_student():
    """Keras 3.15: with features, `evaluate` runs the student in training mode, which moves its
    batch-normalization statistics towards the validation data; tfkd: it changes nothing."""
    x, y = tiny.data(8)

    def evaluated(make_distiller):
        distiller = make_distiller(tiny.model(seed=1), tiny.model(seed=2), stage1())
        normalization, mean = first_batch_normalization(distiller.student, x)
        distiller.evaluate(x, y, batch_size=8, verbose=0)
        return normalization.moving_mean.numpy(), mean

    with pinned("K4", "Distiller.test_step"):
        moving_mean, mean = evaluated(keras_distiller)
        np.testing.assert_allclose(moving_mean, 0.1 * mean, rtol=1e-3, atol=1e-6)
        assert np.all(mean)
    np.testing.assert_array_equal(evaluated(tfkd_distiller)[0], 0)


def test_k5_the_student_runs_twice():
    """Keras 3.15: with features the student runs twice per training and per validation step, and
    batch normalization counts a batch twice; tfkd: one forward pass."""
    x, y = tiny.data(8)

    def trained(make_distiller):
        student = tiny.model(seed=1)
        distiller = make_distiller(student, tiny.model(seed=2), stage1(), run_eagerly=True)
        normalization, mean = first_batch_normalization(student, x)
        runs = run_by(student)
        distiller.train_on_batch(x, y)
        in_training, moving_mean = len(runs), normalization.moving_mean.numpy()
        distiller.test_on_batch(x, y)
        return in_training, len(runs) - in_training, moving_mean, mean

    with pinned("K5", "Distiller.observe_student and taps.extractor"):
        in_training, in_evaluation, moving_mean, mean = trained(keras_distiller)
        assert in_training == in_evaluation == 2
        np.testing.assert_allclose(moving_mean, (1 - 0.9**2) * mean, rtol=1e-3, atol=1e-6)
    in_training, in_evaluation, moving_mean, mean = trained(tfkd_distiller)
    assert in_training == in_evaluation == 1
    np.testing.assert_allclose(moving_mean, (1 - 0.9) * mean, rtol=1e-3, atol=1e-6)


def test_k6_the_teacher_runs_in_validation():
    """Keras 3.15: every validation batch passes through the teacher; tfkd: the student alone."""

    def teacher_runs(make_distiller):
        teacher = tiny.model(seed=2)
        distiller = make_distiller(linear(1), teacher, LogitsDistillation(), run_eagerly=True)
        runs = run_by(teacher)
        distiller.evaluate(*tiny.data(24), batch_size=8, verbose=0)
        return len(runs)

    with pinned("K6", "Distiller.test_step"):
        assert teacher_runs(keras_distiller) == 3
    assert teacher_runs(tfkd_distiller) == 0


def test_k7_sample_weights_are_ignored():
    """Keras 3.15: samples of weight 0 train as all others do; tfkd: they do not train."""
    zeros = np.zeros(8)
    with pinned("K7", "masked_mean and the sample masks of all losses"):
        expected, _ = update(keras_distiller(linear(1), linear(2), LogitsDistillation()))
        found, _ = update(
            keras_distiller(linear(1), linear(2), LogitsDistillation()), sample_weight=zeros
        )
        np.testing.assert_array_equal(found[0], expected[0])
        assert np.any(found[0])
    found, _ = update(tfkd_distiller(linear(1), linear(2)), sample_weight=zeros)
    assert not np.any(found[0])


def test_k8_a_saved_distiller_cannot_go_on(tmp_path):
    """Keras 3.15: a distiller that was saved and loaded cannot train, for its losses are lost;
    tfkd: a checkpoint goes on as if nothing had happened."""
    data = tiny.data(8)
    with pinned("K8", "tfkd.runs.checkpoint"):
        theirs = keras_distiller(linear(1), linear(2), LogitsDistillation())
        theirs.fit(*data, verbose=0)
        theirs.save(tmp_path / "distiller.keras")
        with pytest.warns(UserWarning, match="was not called as part of model loading"):
            loaded = keras.models.load_model(tmp_path / "distiller.keras")
        with pytest.raises(AttributeError, match="_student_loss"):
            loaded.fit(*data, verbose=0)
    ours = tfkd_distiller(linear(1), linear(2), momentum=0.9)
    update(ours)
    checkpoint.save(tmp_path / "checkpoint.npz", ours, {"epoch": 1})
    expected, _ = update(ours)
    again = tfkd_distiller(linear(3), linear(2), momentum=0.9)
    assert checkpoint.restore(tmp_path / "checkpoint.npz", again).state == {"epoch": 1}
    np.testing.assert_array_equal(update(again)[0][0], expected[0])


def test_k9_weight_files_contain_the_teacher(tmp_path):
    """Keras 3.15: the teacher is in every weight file and backup; tfkd: it never is."""
    path, size = tmp_path / "state.weights.h5", 4 * tiny.model(64, seed=2).count_params()
    with pinned("K9", "the untracked teacher of tfkd.Distiller and its __dir__"):
        theirs = keras_distiller(linear(1), tiny.model(64, seed=2), LogitsDistillation())
        theirs(tiny.data(1)[0])
        theirs.save_weights(path)
        assert path.stat().st_size > size
    tfkd_distiller(linear(1), tiny.model(64, seed=2)).save_weights(path, overwrite=True)
    assert 4 * linear(1).count_params() < path.stat().st_size < size / 2


class Interruption(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise Interruption


def test_k10_backups_need_a_distiller_that_has_run(tmp_path):
    """Keras 3.15: `BackupAndRestore` fails on a new distiller, though both of its models are
    built; tfkd: it works, and an interrupted run ends as an uninterrupted one."""

    def fit(distiller, *callbacks):
        x, y = tiny.data(8)
        distiller.fit(x, y, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        return distiller.student.get_weights()

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pinned("K10", "the call of build at the end of KnowledgeDistiller.__init__"):
        theirs = keras_distiller(linear(1), linear(2), LogitsDistillation())
        with pytest.raises(ValueError, match="must be built"):
            fit(theirs, backup)
        theirs(tiny.data(1)[0])
        fit(theirs, backup)
    expected = fit(tfkd_distiller(linear(1), linear(2), momentum=0.9))
    with pytest.raises(Interruption):
        fit(tfkd_distiller(linear(1), linear(2), momentum=0.9), backup, Interrupt())
    found = fit(tfkd_distiller(linear(3), linear(2), momentum=0.9), backup)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-7)


def nested(seed):
    """A model around a model, as transfer learning makes them; its features are at `inner`."""
    initializer = keras.initializers.HeNormal(seed)
    inner = keras.Input(tiny.SHAPE)
    outputs = layers.Conv2D(4, 3, kernel_initializer=initializer, name="inner")(inner)
    backbone = keras.Model(inner, layers.GlobalAveragePooling2D()(outputs), name="backbone")
    inputs = keras.Input(tiny.SHAPE)
    return keras.Model(inputs, layers.Dense(tiny.CLASSES)(backbone(inputs)))


def test_k12_layers_of_nested_models_cannot_be_named():
    """Keras 3.15: a layer within a backbone does not exist; tfkd: a path leads to it."""
    path = "backbone/inner"
    with pinned("K12", "tfkd.taps"):
        for name in ("inner", path):
            with pytest.raises(ValueError, match=f"No such layer: {name}"):
                keras_distiller(nested(1), nested(2), FeatureDistillation("mse", name, name))
    ours = tfkd_distiller(nested(1), nested(2), FeatureDistillation("mse", path, path))
    x, _ = tiny.data(8)
    features = [m.get_layer("backbone").get_layer("inner")(x) for m in (ours.student, ours.teacher)]
    expected = np.mean((features[0] - features[1]) ** 2)
    assert update(ours)[1]["feature_distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_k13_models_of_different_precision_are_refused():
    """Keras 3.15: a student in mixed precision cannot learn from a float32 teacher; tfkd: it can,
    and the loss is computed in float32. (Other sizes of the input are refused by both.)"""
    keras.config.set_dtype_policy("mixed_float16")
    student = linear(1)
    keras.config.set_dtype_policy("float32")
    teacher = linear(2)
    with (
        pinned("K13", "autocast=False in tfkd.Distiller"),
        pytest.raises(ValueError, match="output dtypes must match"),
    ):
        keras_distiller(student, teacher, LogitsDistillation())
    x, _ = tiny.data(8)
    student_logits, teacher_logits = student(x).numpy(), teacher(x).numpy()
    assert student_logits.dtype == "float16" and teacher_logits.dtype == "float32"
    kernel, logs = update(tfkd_distiller(student, teacher))
    expected = knowledge_distillation(student_logits, teacher_logits, 4.0)
    assert logs["kd_loss"] == pytest.approx(expected, rel=1e-4) and np.any(kernel[0])


def test_k14_weights_cannot_follow_a_schedule():
    """Keras 3.15: `student_loss_weight` must be a number (the weights of single losses are not
    looked at, and a variable passes); tfkd: the weight of each loss may be a schedule."""
    weight = keras.Variable(0.0, trainable=False)
    with pinned("K14", "tfkd.schedules"):
        with pytest.raises(ValueError, match="student_loss_weight must be a number"):
            keras_distiller(linear(1), linear(2), LogitsDistillation(), weight)
        theirs = keras.distillation.Distiller(
            linear(2), linear(1), [LogitsDistillation()], [weight], student_loss_weight=0.0
        )
        assert not np.any(update(compiled(theirs))[0][0])
    x, y = tiny.data(8)
    p, q = (softmax(linear(seed)(x) / TEMPERATURE) for seed in (2, 1))
    warm_up = tfkd.schedules.LinearWarmUp(0.0, 1.0, epochs=2)
    kd = tfkd.losses.get("kd", temperature=TEMPERATURE, weight=warm_up)
    ours = tfkd_distiller(linear(1), linear(2), kd, student_loss_weight=0.0)
    start = ours.student.get_weights()[0]
    for epoch, expected in enumerate([0.0, kernel_step(0.5 * (q - p) * TEMPERATURE / len(x))]):
        ours.fit(x, y, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
        step = ours.student.get_weights()[0] - start
        np.testing.assert_allclose(step, expected, rtol=1e-3, atol=1e-6)


def test_k15_features_of_different_width_do_not_train():
    """Keras 3.15: features of a wider teacher fail in the first step; tfkd: `FitNet` brings an
    adapter along and trains it."""
    with pinned("K15", "tfkd.layers.Adapter"):
        theirs = keras_distiller(tiny.model(4, seed=1), tiny.model(8, seed=2), stage1())
        with pytest.raises(ValueError, match="Dimensions must be equal"):
            update(theirs)
    loss = tfkd.losses.FitNet(spots=[("stage1", "stage1")])
    ours = tfkd_distiller(tiny.model(4, seed=1), tiny.model(8, seed=2), loss)
    kernel = loss.adapters[0].transformation.kernel
    before = kernel.numpy()
    update(ours)
    assert kernel.shape == (1, 1, 4, 8) and np.any(kernel.numpy() != before)


def test_k16_one_model_in_both_roles_is_accepted():
    """Keras 3.15: a student that is its own teacher is frozen with it and never learns, without
    a word; tfkd: an error."""
    model = linear(1)
    with pinned("K16", "the check for shared variables in distillers/checks/models.py"):
        assert keras_distiller(model, model, LogitsDistillation()).trainable_variables == []
    with pytest.raises(UsageError, match="share"):
        tfkd_distiller(model, model)
