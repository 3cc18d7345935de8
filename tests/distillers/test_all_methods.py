"""What every method must satisfy, on the table of methods."""

import functools
import subprocess
import sys

import h5py
import keras
import methods
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers, ops
from methods import DATA_FREE, LOSSES, METHODS, OF_STUDENTS, PLAIN, make
from tiny import EAGER, assert_equal, values

import tfkd
from tfkd.errors import UsageError
from tfkd.runs import checkpoint


def chosen(names, *fast):
    """The names as parameters of a test, those slow that are not among the fast ones."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


#: One method of each base class.
FAST = ("kd+at", "ackd", "sakd", "iakd", "tofd", "dfad", "mutual", "one", "acn")
#: Every method; slow are those whose base class another one tests.
MOST = chosen(PLAIN, *FAST)


def train(method, replicas=1, **compile_arguments):
    """Trains for an epoch; returns the distiller, and its logs."""
    with tfkd.runtime.strategy("auto", replicas).scope():
        keras.utils.set_random_seed(0)
        distiller = make(method, **compile_arguments)
        logs = distiller.fit(methods.data(weighted=True), verbose=0).history
    return distiller, {name: value[0] for name, value in logs.items()}


@pytest.fixture(scope="module")
def trained():
    """What training on one device gives, once for each method."""
    return functools.cache(train)


def on_replicas():
    for method in [*METHODS, *LOSSES]:
        for replicas in (2, 4):
            marks = () if replicas == 2 and method == "ackd" else pytest.mark.slow
            yield pytest.param(method, replicas, marks=marks, id=f"{method}-{replicas}")


@pytest.mark.parametrize("method, replicas", on_replicas())
def test_replicas_give_the_update_of_one_device(method, replicas, trained):
    """With sample weights, and a last batch that they cannot share equally."""
    expected, expected_logs = trained(method)
    found, logs = train(method, replicas)
    logs.pop("reestimation_seconds", None)
    for name, value in logs.items():
        assert value == pytest.approx(expected_logs[name], rel=1e-3, abs=1e-6), name
    # Other draws would show.
    for name in {"accepted_share", "spot_stage2_share", "swapped_share"} & logs.keys():
        assert method not in PLAIN or 0 < logs[name] < 1
    state = [values(checkpoint.variables_of(made)) for made in (expected, found)]
    for a, b in zip(*state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_every_loss_is_in_the_table():
    available = tfkd.losses.available()
    # Not those that other tests define.
    ours = {name for name, cls in available.items() if cls.__module__.startswith("tfkd.")}
    pair = methods.models("losses of logits")
    made = [build(*pair).distillation_losses for build in LOSSES.values()]
    assert {loss.id for losses in made for loss in losses} == ours


def test_every_method_is_in_the_table():
    ours = {
        name
        for name, cls in tfkd.distillers.available().items()
        if cls.__module__.startswith("tfkd.")
    }
    pair = methods.models("kd+at")
    assert {METHODS[method](*pair).id for method in PLAIN} - {None} == ours


def with_fixed_draws(distiller):
    """XLA draws other numbers: what a step draws is given here."""
    random = np.random.default_rng(0)
    if isinstance(distiller, tfkd.SAKD) and distiller.policy is not None:
        noise = random.gumbel(size=(64, len(distiller.spots), 2)).astype("float32")
        distiller.policy.noise = lambda size: tf.constant(noise)[:size]
    if isinstance(distiller, (tfkd.ACN, tfkd.DAFL, tfkd.DFAD)):
        noise = random.normal(size=(64, distiller.noise_size)).astype("float32")
        distiller.draw_noise = lambda size: tf.constant(noise)[:size]
    kept = (random.uniform(size=(64, 1, 1, 64)) >= 0.15).astype("float32")
    for loss, _ in distiller.distillation_parts():
        if loss.id == "mgd":
            loss.draw_kept = lambda shape: tf.constant(kept)[: shape[0], ..., : shape[-1]]
        if loss.id == "dgkd":
            loss.draw_kept = lambda teachers: tf.one_hot(0, teachers)
    return distiller


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, *LOSSES])
def test_compiled_with_xla_it_is_the_same_step(method):
    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        distiller = with_fixed_draws(make(method, jit_compile=jit_compile))
        logs = distiller.fit(methods.data(weighted=True), verbose=0).history
        logs.pop("reestimation_seconds", None)
        found.append((logs, values(distiller.trainable_variables)))
    (expected_logs, expected), (logs, variables) = found
    if method in ("sakd, random", "losses of relations"):
        # Their decisions and crd's negatives cannot be given.
        assert np.isfinite([value[0] for value in logs.values()]).all()
        return
    for name, value in logs.items():
        assert value[0] == pytest.approx(expected_logs[name][0], rel=1e-3, abs=1e-6), name
    for a, b in zip(expected, variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("method", MOST)
def test_all_of_a_student_is_trained_and_nothing_of_its_teacher(method, trained):
    distiller, _ = trained(method)
    of_optimizers = [id(v) for _, own in distiller.optimizers().values() for v in own]
    assert sorted(of_optimizers) == sorted(id(v) for v in distiller.trainable_variables)
    fresh = methods.models(method)
    for student, start in zip(distiller.students, fresh):
        for variable, before in zip(student.trainable_variables, start.trainable_variables):
            # A block that is swapped in both steps stays.
            assert method == "iakd" or not np.array_equal(variable, before), variable.path
    if distiller.teacher is not None:
        assert_equal(values(distiller.teacher.variables), values(fresh[1].variables))
        tracked = {id(variable) for variable in distiller.variables}
        assert not tracked & {id(variable) for variable in distiller.teacher.variables}


@pytest.mark.parametrize("method", MOST)
def test_students_are_saved_as_ordinary_models(method, trained, tmp_path):
    distiller, _ = trained(method)
    x, _ = tiny.data(8)
    distiller.save(tmp_path / "student.keras")
    models = {"student": distiller.student, **distiller.learners()}
    for name, model in distiller.learners().items():
        model.save(tmp_path / f"{name}.keras")
    for name, model in models.items():
        saved = keras.models.load_model(tmp_path / f"{name}.keras")
        assert saved.count_params() == model.count_params()
        np.testing.assert_allclose(saved(x), model(x), rtol=1e-5, atol=1e-6)


def test_saved_models_need_no_tfkd(trained, tmp_path):
    x, _ = tiny.data(8)
    np.save(tmp_path / "images.npy", x)
    models = {}
    for method in ("ackd", "mutual", "one"):
        distiller, _ = trained(method)
        models |= {"student": distiller.student, **distiller.learners()}
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    code = (
        "import sys, keras, numpy; x = numpy.load('images.npy')\n"
        "for name in sys.argv[1:]:\n"
        "    numpy.save(f'{name}.npy', keras.models.load_model(f'{name}.keras')(x))\n"
        "assert 'tfkd' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *models], cwd=tmp_path, check=True)
    for name, model in models.items():
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", MOST)
def test_weight_files_hold_what_is_trained_and_no_teacher(method, trained, tmp_path):
    distiller, _ = trained(method)
    path = tmp_path / "state.weights.h5"
    distiller.save_weights(path)
    again = make(method, *methods.models(method, (5, 6)))
    again.load_weights(path)
    # Checkpoints of runs hold the random state too.
    state, restored = (
        [v for v in checkpoint.variables_of(made) if "seed_generator" not in v.path]
        for made in (distiller, again)
    )
    assert_equal(values(state), values(restored))
    numbers = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, item: numbers.append(item.size) if isinstance(item, h5py.Dataset) else None
        )
    most = sum(np.size(variable) for variable in checkpoint.variables_of(distiller))
    assert sum(numbers) <= most


@pytest.mark.parametrize("method", MOST)
def test_evaluation_is_that_of_the_students_and_changes_nothing(method, trained):
    distiller, _ = trained(method)
    x, y = tiny.data(23, seed=1)
    before = values(checkpoint.variables_of(distiller))
    logs = distiller.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    predicted = distiller.predict(x, verbose=0)
    assert_equal(before, values(checkpoint.variables_of(distiller)))
    np.testing.assert_allclose(predicted, distiller.student(x), rtol=1e-4, atol=1e-5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert logs["loss"] == pytest.approx(float(loss(y, predicted)), rel=1e-4)
    for name, model in {"": distiller.student, **distiller.learners()}.items():
        name = f"{name}_accuracy".lstrip("_")
        assert logs[name] == pytest.approx(np.mean(np.argmax(model(x), -1) == y)), name


RESUMED = [
    *MOST,
    *chosen(["kd, curriculum", "kd+at, dot", "sakd, random", "iakd, per sample"], "kd+at, dot"),
]


@pytest.mark.parametrize("method", RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    def start(seed):
        keras.utils.set_random_seed(seed)
        student, second = methods.models(method, (seed, seed + 1), dropout=0.3)
        # A teacher is no part of a checkpoint.
        teacher = methods.models(method)[1]
        students = method.startswith(OF_STUDENTS)
        return make(method, student, second if students else teacher, **EAGER)

    whole, resumed = start(3), start(5)
    # After one step an optimizer has all of its state.
    data = methods.data(methods.BATCH)
    whole.fit(data, verbose=0)
    checkpoint.save(tmp_path / "checkpoint.npz", whole, {})
    checkpoint.restore(tmp_path / "checkpoint.npz", resumed)
    histories = []
    for distiller in (whole, resumed):
        logs = distiller.fit(data, epochs=2, initial_epoch=1, verbose=0).history
        logs.pop("reestimation_seconds", None)
        histories.append(logs)
    assert histories[0] == histories[1]
    assert_equal(*(values(checkpoint.variables_of(made)) for made in (whole, resumed)))


@pytest.mark.parametrize("method", MOST)
def test_samples_of_weight_0_train_nothing(method):
    """Batch normalization apart, whose statistics are those of all images."""
    x, y = tiny.data(16)
    weights = np.tile([0.0, 2.0], 8)
    distiller = make(method, *methods.models(method, normalized=False), **EAGER)
    distiller.build_optimizers()
    state = checkpoint.variables_of(distiller)
    start, found = values(state), []
    for labels in (y, np.where(weights > 0, y, (y + 1) % tiny.CLASSES)):
        for variable, value in zip(state, start, strict=True):
            variable.assign(value)
        distiller.train_on_batch(x, labels, sample_weight=weights)
        found.append(values(distiller.trainable_variables))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", chosen(PLAIN, "kd+at", "sakd"))
def test_fused_batch_normalization_changes_rounding_alone(method):
    found = []
    for fused in (True, False):
        tfkd.runtime.set_fused_batch_normalization(fused)
        try:
            keras.utils.set_random_seed(0)
            distiller = make(method, rate=0.002, **EAGER)
            data = methods.data().repeat()
            logs = distiller.fit(data, steps_per_epoch=10, verbose=0).history
            found.append((logs["loss"][0], values(distiller.student.variables)))
        finally:
            tfkd.runtime.set_fused_batch_normalization(True)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(a).max()))


#: How often student (or students) and teacher run in a step of training.
RUNS = {
    "alone": (1, 0),
    "kd+at": (1, 1),
    "ackd": (1, 1),
    "teacher_free": (1, 0),
    "mutual": (1, 1),
    "pcl": (1, 0),
    **{"byot": (1, 0), "dks": (1, 0), "tofd": (1, 1)},
}


@pytest.mark.parametrize("method", chosen(RUNS, *FAST))
def test_one_forward_pass_of_each_model(method):
    models = methods.models(method)
    distiller = make(method, *models, **EAGER)
    x, y = tiny.data(8)
    distiller.train_on_batch(x, y)
    runs = [0, 0]

    def counting(number, call):
        def count(*args, **kwargs):
            runs[number] += 1
            return call(*args, **kwargs)

        return count

    for number, model in enumerate(models):
        layer = model.layers[1]
        layer.call = counting(number, layer.call)
    distiller.train_on_batch(x, y)
    assert tuple(runs) == RUNS[method]
    distiller.test_on_batch(x, y)
    # The teacher is not evaluated.
    assert tuple(runs) == (2, 2 if method == "mutual" else RUNS[method][1])


@pytest.mark.parametrize("method", [name for name in FAST if name not in DATA_FREE])
def test_training_needs_labels(method, trained):
    with pytest.raises(UsageError, match="Training and evaluation need labels"):
        trained(method)[0].fit(tiny.data()[0], verbose=0)


class OwnMethod(tfkd.Distiller):
    id = "own_method"


@pytest.mark.parametrize(
    "method", [tfkd.ACKD, tfkd.SAKD, tfkd.IAKD, tfkd.TOFD, tfkd.DAFL, tfkd.DFAD, OwnMethod]
)
def test_a_method_that_needs_a_teacher_says_so(method):
    with pytest.raises(UsageError, match=f"{method.__name__} needs a teacher"):
        method(tiny.model(), None)


@keras.saving.register_keras_serializable(package="tests")
class OfEachPass(keras.regularizers.Regularizer):
    """Adds a number to the loss for each sample."""

    def __init__(self, value):
        self.value = value

    def __call__(self, outputs):
        return self.value * ops.sum(ops.ones_like(outputs[:, 0, 0, 0]))

    def get_config(self):
        return {"value": self.value}


def with_activity(value, seed, name):
    """A tiny model that adds a number to the loss in each pass, in its stem and in a block."""

    def add(x):
        return layers.Activation("linear", activity_regularizer=OfEachPass(value))(x)

    inputs = keras.Input(tiny.SHAPE)
    x = layers.ReLU(name="stem")(add(layers.Conv2D(4, 3, padding="same")(inputs)))
    x = layers.ReLU(name="stage1")(add(layers.Conv2D(4, 3, padding="same")(x)))
    x = layers.ReLU(name="stage2")(layers.Conv2D(8, 3, 2, padding="same")(x))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(inputs, layers.Dense(tiny.CLASSES, name="logits")(x), name=name)


def loss_with_activity(method, value, replicas):
    with tfkd.runtime.strategy("auto", replicas).scope():
        keras.utils.set_random_seed(0)
        models = [with_activity(value, seed, f"model{seed}") for seed in (1, 2)]
        distiller = make(method, *models, rate=0.0, metrics=None, run_eagerly=replicas == 1)
        data = tf.data.Dataset.from_tensor_slices(tiny.data(8)).batch(8)
        training = distiller.fit(data, verbose=0).history["loss"][0]
        return training, distiller.evaluate(data, verbose=0)


#: How often the number is added: twice (stem and block) for each pass that trains a student.
PASSES = {
    "alone": 2,
    "kd+at": 2,
    "ackd": 2,
    "sakd": 2,
    "iakd, kept": 2,
    "iakd, swapped": 1,
    "teacher_free": 2,
    **{"byot": 2, "dks": 2, "tofd": 2},
    "mutual": 4,
    # The copies begin behind them.
    "pcl": 2,
    "acn, warming up": 4,
    # Real and divergent images.
    "acn": 8,
}


@pytest.mark.parametrize("method", chosen(PASSES, "sakd", "iakd, swapped"))
def test_activity_regularizers_count_once_for_each_pass_that_trains(method):
    (plain, plain_evaluation), (found, evaluation) = (
        loss_with_activity(method, value, 1) for value in (0.0, 1.0)
    )
    assert found - plain == pytest.approx(PASSES[method], abs=1e-4)
    students = 2 if method.startswith(OF_STUDENTS) else 1
    difference = np.ravel(evaluation)[0] - np.ravel(plain_evaluation)[0]
    assert difference == pytest.approx(2 * students, abs=1e-4)


@pytest.mark.slow
def test_activity_regularizers_are_means_over_the_samples_of_all_replicas():
    (plain, plain_evaluation), (found, evaluation) = (
        loss_with_activity("kd+at", value, 2) for value in (0.0, 1.0)
    )
    assert found - plain == pytest.approx(2, abs=1e-4)
    assert np.ravel(evaluation)[0] > np.ravel(plain_evaluation)[0] + 1.9


def test_activity_regularizers_that_replicas_would_mix_up_are_refused():
    with tfkd.runtime.strategy("mirrored", 2).scope():
        student = tiny.model(seed=1)
        student.get_layer("stage1").activity_regularizer = keras.regularizers.L2(0.1)
        distiller = make("alone", student, None)
        with pytest.raises(UsageError, match="'tiny' regularizes the activity of layers beside"):
            distiller.fit(*tiny.data(8), batch_size=8, verbose=0)


@pytest.mark.parametrize("method", chosen(PLAIN, "acn"))
def test_replicas_without_a_sample_take_part_in_evaluation(method):
    """17 samples in batches of 16: two replicas share the last one."""

    def evaluated(replicas):
        with tfkd.runtime.strategy("auto", replicas).scope():
            keras.utils.set_random_seed(0)
            distiller = make(method)
            data = tf.data.Dataset.from_tensor_slices(tiny.data(17)).batch(16)
            return distiller.evaluate(data, verbose=0, return_dict=True)

    assert evaluated(2) == pytest.approx(evaluated(1), rel=1e-4)


@pytest.mark.parametrize("method", chosen(PLAIN, "kd+at", "mutual"))
def test_training_under_replicas_does_not_change_what_is_saved(method):
    with tfkd.runtime.strategy("mirrored", 2).scope():
        models = methods.models(method)
        before = [model.get_config() for model in models]
        distiller = make(method, *models)
        distiller.build_optimizers()
    assert [model.get_config() for model in models] == before


@pytest.mark.parametrize(
    "replicas, examples, trained_on, as_arrays",
    [
        (2, 17, 16, True),
        pytest.param(4, 22, 20, True, marks=pytest.mark.slow),
        pytest.param(4, 22, 20, False, marks=pytest.mark.slow),
    ],
)
def test_samples_that_replicas_cannot_share_are_left_out(replicas, examples, trained_on, as_arrays):
    """Of the last 6 samples on four replicas 4 remain; of one on two, none of arrays."""
    results = []
    for devices, count in ((1, trained_on), (replicas, examples)):
        with tfkd.runtime.strategy("auto", devices).scope():
            keras.utils.set_random_seed(0)
            distiller = make("alone")
            x, y = (part[:count] for part in tiny.data(22))
            if as_arrays:
                distiller.fit(x, y, batch_size=16, shuffle=False, verbose=0)
            else:
                data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
                distiller.fit(data, verbose=0)
            results.append(values(distiller.student.weights))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_batch_that_leaves_a_replica_without_samples_is_one_line():
    with tfkd.runtime.strategy("mirrored", 2).scope():
        distiller = make("alone")
        with pytest.raises(UsageError, match="batch sizes must be multiples of the number of rep"):
            distiller.fit((tiny.data(1) for _ in range(1)), verbose=0)


@pytest.mark.parametrize("everywhere", [True, False])
def test_sample_weights_may_be_for_the_labels_alone(everywhere):
    x, y = tiny.data(8)
    weights = np.array([0.0, 1.0, 2.0, 0.0] * 2)
    logs = []
    for given in (None, weights):
        distiller = make("kd+at", distillation_sample_weight=everywhere)
        logs.append(distiller.train_on_batch(x, y, sample_weight=given, return_dict=True))
    plain, weighted = logs
    assert abs(plain["student_loss"] - weighted["student_loss"]) > 1e-3
    for name in ("kd_loss", "at_loss"):
        assert (abs(plain[name] - weighted[name]) < 1e-6) == (not everywhere)
