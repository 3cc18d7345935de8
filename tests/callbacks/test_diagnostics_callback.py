"""The callback measures what it says, on all methods, and training does not notice it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers
from tiny import assert_equal, values

import tfkd
from tfkd.callbacks.diagnostics import draw
from tfkd.errors import UsageError
from tfkd.inspection import diagnostics
from tfkd.inspection.gradients import PartGradients
from tfkd.runs.checkpoint import variables_of


def teacher(**arguments):
    return tiny.model(width=6, name="teacher", seed=2, **arguments)


def make(student=None, losses=None, optimizer=0.05, own_teacher=None, **arguments):
    losses = losses or ["kd", tiny.Hint(weight=0.5)]
    distiller = tfkd.KnowledgeDistiller(
        student or tiny.model(seed=1, dropout=0.3), own_teacher or teacher(), losses, **arguments
    )
    distiller.compile(tfkd.optimizers.SGD(optimizer, momentum=0.9), metrics=["accuracy"])
    return distiller


class Memory(keras.callbacks.Callback):
    """Remembers everything that a distiller has after each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        watch = self.model._loss_watch
        everything = [*self.model.variables, *variables_of(self.model), watch._step]
        self.seen.append(values(everything))


def fit(distiller, further=(), epochs=2):
    x, y = tiny.data(32)
    validation = tf.data.Dataset.from_tensor_slices(tiny.data(40, seed=1)).batch(16)
    return distiller.fit(
        x, y, batch_size=16, epochs=epochs, validation_data=validation, verbose=0,
        callbacks=list(further(validation) if callable(further) else further),
    ).history  # fmt: skip


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A distiller with dropout and a connector, trained with diagnostics, and what was seen."""
    keras.utils.set_random_seed(0)
    distiller, memories = make(), (Memory(), Memory())
    folder = tmp_path_factory.mktemp("run")

    def further(validation):
        one = tfkd.callbacks.Diagnostics(validation, 30, gradient_examples=16, folder=folder)
        board = keras.callbacks.TensorBoard(folder / "tensorboard")
        return [memories[0], one, memories[1], board]

    history = fit(distiller, further)
    return distiller, history, memories, folder


def test_training_does_not_notice(looked_at):
    distiller, history, (before, after), _ = looked_at
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    keras.utils.set_random_seed(0)
    plain = make()
    logs = fit(plain)
    assert_equal(values(variables_of(distiller)), values(variables_of(plain)))
    assert {name: history[name] for name in logs} == logs
    # There was something to be put back: the student draws, and has statistics.
    assert any("seed" in variable.path for variable in distiller.variables)


def test_the_values_are_those_of_the_models(looked_at):
    distiller, history, _, _ = looked_at
    inputs, labels = draw([tiny.data(40, seed=1)], 30)
    student = np.array(distiller.student(inputs, training=False))
    of_teacher = np.array(distiller.teacher(inputs, training=False))
    last = {name: value[-1] for name, value in history.items()}
    hits = np.mean(student.argmax(-1) == of_teacher.argmax(-1))
    assert last["agreement_top1"] == pytest.approx(hits)
    p, q = tf.nn.softmax(of_teacher).numpy(), tf.nn.softmax(student).numpy()
    assert last["teacher_kl"] == pytest.approx(np.mean(np.sum(p * np.log(p / q), -1)), rel=1e-3)
    assert last["entropy"] == pytest.approx(-np.mean(np.sum(q * np.log(q), -1)), rel=1e-4)
    assert last["teacher_entropy"] == pytest.approx(-np.mean(np.sum(p * np.log(p), -1)), rel=1e-4)
    expected = diagnostics.calibration_error(student, labels)
    assert last["calibration_error"] == pytest.approx(expected, abs=1e-5)
    taps = ("stage1", "stage2", "pooled", "logits")
    assert [name for name in last if name.startswith("cka/")] == [f"cka/{tap}" for tap in taps]
    for tap in taps:
        features = [
            np.array(diagnostics.similarities(tfkd.taps.extractor(model, [tap])(inputs)[tap]))
            for model in (distiller.student, distiller.teacher)
        ]
        expected = diagnostics.centered_alignment(*([part] for part in features))
        assert last[f"cka/{tap}"] == pytest.approx(expected, abs=1e-4)
    # Five classes: each of them is among five.
    assert "agreement_top5" not in last


def test_logs_files_and_cost(looked_at):
    _, history, _, folder = looked_at
    parts = ("student_loss", "kd_loss", "hint_for_tests_loss")
    shares = [history[f"gradient_share/{part}"] for part in parts]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1, rtol=1e-5)
    assert "gradient_cosine/student_loss" not in history and history["gradient_norm"][0] > 0
    assert all(seconds > 0 for seconds in history["diagnostics_seconds"])
    assert (folder / "diagnostics.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (folder / "tensorboard" / "train").glob("events*")
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert {"epoch_agreement_top1", "epoch_cka/stage2", "epoch_gradient_share/kd_loss"} <= tags


def terms_of(distiller, data, part):
    """The part of the loss, in training mode, written out."""
    x, y = data
    student = tfkd.taps.extractor(distiller.student, ["stage2"])(x, training=True)
    of_teacher = tfkd.taps.extractor(distiller.teacher, ["stage2"])(x, training=False)
    kd, hint = distiller.distillation_losses
    return {
        "student_loss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
            y, student["logits"]
        ),
        "kd_loss": lambda: 0.7 * kd([student["logits"]], [of_teacher["logits"]]),
        "hint_for_tests_loss": lambda: 0.5 * hint([student["stage2"]], [of_teacher["stage2"]]),
        "regularization": lambda: sum(distiller.student.losses),
    }[part]()


def measured(distiller, data):
    with distiller._scope():
        return PartGradients(distiller, tuple(map(tf.convert_to_tensor, data))).measure()


@pytest.fixture(scope="module")
def regularized():
    student = tiny.model(seed=1, regularizer=keras.regularizers.L2(0.01))
    kd = tfkd.losses.get("kd", weight=0.7)
    return make(student, losses=[kd, tiny.Hint(weight=0.5)], student_loss_weight=0.3)


def test_gradients_are_those_of_a_plain_tape(regularized):
    distiller, data = regularized, tiny.data(16)
    before = values(distiller.variables)
    parts, products, weights = measured(distiller, data)
    assert_equal(values(distiller.variables), before)
    assert parts == ["student_loss", "kd_loss", "hint_for_tests_loss", "regularization"]
    assert products.dtype == "float32" and weights.tolist() == pytest.approx([0.3, 1, 1, 1])
    variables, flat = distiller.student.trainable_variables, []
    for part in parts:
        with tf.GradientTape() as tape:
            value = terms_of(distiller, data, part)
        # Keras' variables cannot be asked for gradients of zero.
        pairs = zip(tape.gradient(value, variables), variables)
        gradients = [np.zeros(v.shape) if g is None else np.array(g) for g, v in pairs]
        flat.append(np.concatenate([one.ravel() for one in gradients]))
    flat = np.stack(flat)
    np.testing.assert_allclose(products, flat @ flat.T, rtol=1e-3, atol=1e-4)
    with tf.GradientTape() as tape:
        total = sum(w * terms_of(distiller, data, part) for w, part in zip(weights, parts))
    gradients = tape.gradient(total, variables)
    norm, shares, cosines = diagnostics.shares_and_cosines(products, weights)
    assert norm == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-3)
    norms = np.linalg.norm(flat, axis=1) * weights
    np.testing.assert_allclose(shares, norms / norms.sum(), rtol=1e-3)
    by_hand = flat @ flat[0] / np.linalg.norm(flat, axis=1) / np.linalg.norm(flat[0])
    np.testing.assert_allclose(cosines, by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [["kd"], ["sp"]])
def test_two_replicas_measure_what_one_does_and_train_alike(losses):
    def trained(replicas, looks):
        keras.utils.set_random_seed(0)
        with tfkd.runtime.strategy("auto", replicas).scope():
            distiller = make(tiny.model(seed=1), list(losses), student_loss_weight=0.5)
        further = [tfkd.callbacks.Diagnostics([tiny.data(30, seed=1)], gradient_examples=15)]
        history = fit(distiller, further if looks else (), epochs=1)
        return {name: value[-1] for name, value in history.items()}, distiller

    (one, _), (two, distiller), (_, plain) = trained(1, True), trained(2, True), trained(2, False)
    assert_equal(values(variables_of(distiller)), values(variables_of(plain)))
    assert one.keys() == two.keys() and f"gradient_share/{losses[0]}_loss" in one
    for name in one.keys() - {"diagnostics_seconds"}:
        assert two[name] == pytest.approx(one[name], rel=0.01, abs=0.002), name


def look_at(distiller, every=1, epochs=1, **arguments):
    """Looks at a distiller that is not trained; returns the logs of each epoch."""
    look = tfkd.callbacks.Diagnostics([tiny.data(40)], every=every, **arguments)
    look.set_model(distiller)
    look.set_params({"epochs": epochs, "verbose": 0})
    look.on_train_begin()
    history = [{} for _ in range(epochs)]
    before = values(distiller.variables)
    for epoch, logs in enumerate(history):
        look.on_epoch_end(epoch, logs)
    look.on_train_end()
    assert 0 < look.share <= 1
    assert_equal(values(distiller.variables), before)
    return history


@pytest.mark.slow
def test_a_student_that_is_its_teacher():
    student, own_teacher = tiny.model(), tiny.model(name="teacher")
    own_teacher.set_weights(student.get_weights())
    history = look_at(make(student, ["kd"], own_teacher=own_teacher), every=3, epochs=4)
    # After every third, and after the last.
    assert [bool(logs) for logs in history] == [False, False, True, True]
    logs = history[-1]
    assert logs["agreement_top1"] == 1 and logs["teacher_kl"] == pytest.approx(0, abs=1e-6)
    for tap in ("stage1", "stage2", "pooled", "logits"):
        assert logs[f"cka/{tap}"] == pytest.approx(1, abs=1e-5)
    assert logs["calibration_error"] == logs["teacher_calibration_error"]


def test_without_a_teacher(tmp_path):
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1))
    distiller.compile("sgd")
    (logs,) = look_at(distiller, folder=tmp_path)
    expected = {"entropy", "calibration_error", "gradient_norm", "diagnostics_seconds"}
    assert logs.keys() == expected
    assert (tmp_path / "diagnostics.png").exists()


@pytest.mark.slow
def test_classifiers_that_teach_each_other():
    students = [tiny.model(seed=seed, name=f"s{seed}", dropout=0.2) for seed in (1, 2)]
    distiller = tfkd.MutualDistiller(students)
    distiller.compile("sgd")
    (logs,) = look_at(distiller)
    x, _ = tiny.data(40)
    first, second = (np.array(one(x, training=False)).argmax(-1) for one in students)
    assert logs["peer_agreement"] == pytest.approx(np.mean(first == second))
    # What peers learn from labels does not reach the first.
    assert {name for name in logs if name.startswith("gradient_share/")} == {
        "gradient_share/student_loss",
        "gradient_share/mutual_loss",
    }
    assert not any("teacher" in name or name.startswith("cka") for name in logs)


def remembering():
    """A loss that must know which training example an image is."""
    loss = tfkd.losses.get("crd")
    loss.set_examples(tiny.data(32)[1])
    return loss


METHODS = {
    "ackd": lambda student, own: tfkd.ACKD(student, own),
    "sakd": lambda student, own: tfkd.SAKD(student, own, losses=["at"]),
    "iakd": lambda student, own: tfkd.IAKD(student, own, kd_weight=1.0),
    "acn": lambda student, own: tfkd.ACN(
        [student, tiny.model(seed=3)],
        warm_up=1,
        adversarial_every=2,
        generator_width=4,
        generator_blocks=1,
        discriminator_width=4,
    ),
    "mutual": lambda student, own: tfkd.MutualDistiller([student, tiny.model(seed=3)]),
    "pcl": lambda student, own: tfkd.PCL(student, branches=2, ramp=0),
    "crd": lambda student, own: tfkd.KnowledgeDistiller(student, own, losses=[remembering()]),
}
PARTS = {
    "ackd": {"student", "kd", "learners", "collaboration", "adversarial"},
    "sakd": {"student", "kd", "at"},
    "iakd": {"student", "kd"},
    # Of the last epoch; the first is a warm-up, the second trains the adversary alone.
    "acn": {"student", "mutual", "divergent", "divergent_mutual"},
    "mutual": {"student", "mutual"},
    # All branches end in the student's trunk.
    "pcl": {"student", "branches", "ensemble", "ensemble_kd", "averages_kd"},
    "crd": {"student", "crd"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_and_left_as_it_is(method):
    x, y = tiny.data(32)
    data = tf.data.Dataset.from_tensor_slices((x, {"label": y, "index": np.arange(32)})).batch(16)

    def trained(looks):
        keras.utils.set_random_seed(0)
        distiller = METHODS[method](tiny.model(seed=1), teacher())
        distiller.compile(tfkd.optimizers.SGD(0.05, momentum=0.9))
        memories = (Memory(), Memory())
        look = tfkd.callbacks.Diagnostics([(x, y)], gradient_data=data)
        callbacks = [memories[0], look, memories[1]] if looks else []
        train = data if method == "crd" else data.map(lambda x, y: (x, y["label"]))
        logs = []
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, seen: logs.append(dict(seen)))
        distiller.fit(train, epochs=3, verbose=0, callbacks=[*callbacks, keep])
        return distiller, logs, memories

    distiller, logs, (before, after) = trained(True)
    for one, other in zip(before.seen, after.seen, strict=True):
        assert_equal(one, other)
    plain, _, _ = trained(False)
    assert_equal(values(variables_of(distiller)), values(variables_of(plain)))
    found = {name for name in logs[-1] if name.startswith("gradient_share/")}
    assert found == {f"gradient_share/{part}_loss" for part in PARTS[method]}
    assert ("teacher_kl" in logs[-1]) == (distiller.teacher is not None)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_measured_in_float32(policy, regularized):
    keras.config.set_dtype_policy(policy)
    student = tiny.model(seed=1, regularizer=keras.regularizers.L2(0.01))
    kd = tfkd.losses.get("kd", weight=0.7)
    mixed = make(student, [kd, tiny.Hint(weight=0.5)], student_loss_weight=0.3)
    mixed.student.set_weights(regularized.student.get_weights())
    mixed.distillation_losses[1].connector.set_weights(
        regularized.distillation_losses[1].connector.get_weights()
    )
    data = tiny.data(16)
    parts, products, weights = measured(mixed, data)
    assert products.dtype == "float32"
    _, expected, _ = measured(regularized, data)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(products / scale, expected / scale, atol=0.05)
    reader = tfkd.callbacks.diagnostics._reader(mixed.student, ["stage1"])
    logits, (similarities,) = reader(tf.convert_to_tensor(data[0]))
    assert logits.dtype == similarities.dtype == "float32"


class Odd(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__()
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(tiny.CLASSES)

    def call(self, inputs):
        return self.head(self.pool(inputs))


def test_a_subclassed_model_is_compared_by_its_logits():
    distiller = make(Odd(), ["kd"])
    distiller(tiny.data(4)[0])
    (logs,) = look_at(distiller)
    assert [name for name in logs if name.startswith("cka/")] == ["cka/logits"]


def test_the_subset_is_drawn_once_and_deterministically():
    x, y = tiny.data(100)
    batches = [(x[start : start + 30], y[start : start + 30]) for start in range(0, 100, 30)]
    inputs, labels = draw(batches, 20, seed=1)
    again, _ = draw([(x, np.eye(tiny.CLASSES)[y])], 20, seed=1)
    np.testing.assert_array_equal(inputs, again)
    rows = [int(np.flatnonzero((x == one).all((1, 2, 3)))[0]) for one in inputs]
    assert rows == sorted(set(rows)) and len(rows) == 20 and max(rows) > 60 and min(rows) < 40
    np.testing.assert_array_equal(labels, y[rows])
    assert not np.array_equal(draw(batches, 20, seed=2)[0], inputs)
    np.testing.assert_array_equal(draw(batches, 500)[0], x)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([], "at least one batch"),
        (tiny.data(8), "received ndarray"),
        (tf.data.Dataset.from_tensors(tiny.data(8)).repeat(), "data set that ends"),
    ],
)
def test_data_that_is_none(dataset, message):
    with pytest.raises(UsageError, match=message):
        draw(dataset, 10)


def test_arguments_out_of_range():
    with pytest.raises(UsageError, match="every must be a whole number greater than 0"):
        tfkd.callbacks.Diagnostics([tiny.data(8)], every=0)


def test_losses_that_need_indices_have_no_gradients_without():
    distiller = make(tiny.model(seed=1), [remembering()])
    (logs,) = look_at(distiller)
    assert "teacher_kl" in logs and not any(name.startswith("gradient") for name in logs)


class ByItself(tfkd.Distiller):
    """A method that takes its step without the pieces of `Distiller`."""

    def train_step(self, data):
        batch = self.unpack(data)
        with tf.GradientTape() as tape:
            logits = self.observe_student(batch)["logits"]
            loss = self.student_loss(batch, logits)
        variables = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        self.track("loss", loss, batch)
        return self.logs(batch, logits)


def test_a_method_with_its_own_step_takes_no_more_steps_for_being_looked_at():
    found = []
    for looked_at in (False, True):
        keras.utils.set_random_seed(0)
        distiller = ByItself(tiny.model(seed=1), teacher())
        distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
        further = (lambda data: [tfkd.callbacks.Diagnostics(data, 16)]) if looked_at else ()
        history = fit(distiller, further)
        assert int(distiller.optimizer.iterations) == 4
        found.append(values(distiller.student.variables))
    assert_equal(*found)
    assert "agreement_top1" in history and "gradient_norm" not in history
