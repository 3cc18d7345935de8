"""What holds for every distiller: the nine properties of the design, on KnowledgeDistiller."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import ops
from tiny import EAGER, Hint, Relational, assert_equal

import tfkd
from tfkd.errors import UsageError
from tfkd.runs import checkpoint


def make(losses=("kd",), student=None, teacher=None, optimizer=None, compile_arguments=None, **kw):
    student = student or tiny.model(seed=1)
    teacher = teacher or tiny.model(width=8, name="teacher", seed=2)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=list(losses), **kw)
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1), metrics=["accuracy"], **(compile_arguments or {})
    )
    return distiller


def values(model):
    return [variable.numpy() for variable in model.variables]


def test_a_student_that_shares_variables_with_its_teacher_is_an_error():
    model = tiny.model()
    head = keras.layers.Dense(tiny.CLASSES)(model.get_layer("pooled").output)
    with pytest.raises(UsageError, match="share 25 variables"):
        tfkd.KnowledgeDistiller(keras.Model(model.input, head), model)
    with pytest.raises(UsageError, match="share"):
        tfkd.KnowledgeDistiller(model, model)


def test_weights_of_keras_checkpoints_go_back_by_the_distiller(tmp_path):
    """A student by itself refuses them, and a distiller what a student has saved by itself."""
    x, y = tiny.data()
    path = tmp_path / "last.weights.h5"
    distiller = make(["kd", Hint()], tiny.model(), compile_arguments=EAGER)
    keep = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    distiller.fit(x, y, verbose=0, callbacks=[keep])
    again = make(["kd", Hint()], tiny.model(seed=5))
    again.load_weights(path)
    assert_equal(values(distiller.student), values(again.student))
    assert again.optimizer.iterations == distiller.optimizer.iterations
    distiller.student.save_weights(tmp_path / "student.weights.h5")
    with pytest.raises(UsageError, match="student.weights.h5 .* by distiller.student.load_weights"):
        again.load_weights(tmp_path / "student.weights.h5")
    with pytest.raises(UsageError, match="holds no weights of a KnowledgeDistiller of these"):
        make(["kd", Hint()], tiny.model(6)).load_weights(path)
    with pytest.raises(FileNotFoundError):
        again.load_weights(tmp_path / "none.weights.h5")


def test_regularizers_take_part():
    """One step with L2 moves each kernel by an extra learning rate · 2 · factor · kernel."""
    factor, x_y = 0.3, tiny.data()
    plain, regularized = (
        make(student=tiny.model(seed=1, regularizer=regularizer), compile_arguments=EAGER)
        for regularizer in (None, keras.regularizers.L2(factor))
    )
    start = plain.student.layers[1].kernel.numpy()
    logs = [d.train_on_batch(*x_y, return_dict=True) for d in (plain, regularized)]
    moved = [d.student.layers[1].kernel.numpy() - start for d in (plain, regularized)]
    np.testing.assert_allclose(moved[1] - moved[0], -0.1 * 2 * factor * start, rtol=1e-3, atol=1e-6)
    assert logs[1]["loss"] > logs[0]["loss"] + 0.1
    assert logs[1]["student_loss"] == pytest.approx(logs[0]["student_loss"], rel=1e-5)


def test_sample_weights_weigh_every_loss():
    """Weights of 1 on half of the batch give half of that half's loss."""
    x, y = tiny.data()
    weights = np.array([1.0, 0.0] * 16)
    distiller = make(["kd"])
    logits = distiller.student(x, training=True)
    teacher = distiller.teacher(x)
    weighted = make(["kd"], compile_arguments=EAGER)
    logs = weighted.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    kd = tfkd.losses.get("kd")
    assert logs["kd_loss"] == pytest.approx(float(kd([logits[::2]], [teacher[::2]])) / 2, rel=1e-4)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert logs["student_loss"] == pytest.approx(float(cross_entropy(y[::2], logits[::2])) / 2)


def test_class_weights_are_sample_weights():
    x, y = tiny.data()
    class_weight = {label: 0.5 + label for label in range(tiny.CLASSES)}
    by_class, by_sample = make(compile_arguments=EAGER), make(compile_arguments=EAGER)
    by_class.fit(x, y, class_weight=class_weight, shuffle=False, verbose=0)
    by_sample.fit(x, y, sample_weight=0.5 + y, shuffle=False, verbose=0)
    for a, b in zip(values(by_class.student), values(by_sample.student)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_logs_name_each_part_and_callbacks_work(tmp_path):
    distiller = make(["kd", Hint()])
    x, y = tiny.data()
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    history = distiller.fit(
        x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=callbacks
    ).history
    assert set(history) == {
        *("loss", "student_loss", "distillation_loss", "kd_loss", "hint_for_tests_loss"),
        *("accuracy", "val_loss", "val_accuracy"),
    }
    loss = history["student_loss"][0] + history["distillation_loss"][0]
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    weighted = 0.9 * history["kd_loss"][0] + history["hint_for_tests_loss"][0]
    assert history["distillation_loss"][0] == pytest.approx(weighted, rel=1e-5)
    best = keras.models.load_model(tmp_path / "best.keras", compile=False)
    assert best.count_params() == distiller.student.count_params()


def test_validation_begins_no_pass_that_it_does_not_use():
    passes = []

    def batches():
        passes.append(1)
        yield tiny.data(8)

    signature = (tf.TensorSpec((None, *tiny.SHAPE)), tf.TensorSpec((None,), tf.int64))
    validation = tf.data.Dataset.from_generator(batches, output_signature=signature)
    # Of one replica too Keras looks at the first batch, unless all is built.
    with tfkd.runtime.strategy("mirrored", 1).scope():
        distiller = tfkd.KnowledgeDistiller(tiny.model())
        distiller.compile("sgd", metrics=["accuracy"])
    distiller.fit(*tiny.data(8), validation_data=validation, epochs=2, verbose=0)
    assert len(passes) == 2


def test_same_seed_same_result_with_dropout():
    def train(seed):
        keras.utils.set_random_seed(seed)
        distiller = make(student=tiny.model(seed=1, dropout=0.5))
        distiller.fit(*tiny.data(), batch_size=8, verbose=0)
        return values(distiller.student)

    assert_equal(train(3), train(3))
    different = zip(train(3), train(4))
    assert any(not np.array_equal(a, b) for a, b in different)


def test_xla_is_off_by_default_where_it_is_slower():
    gpu = bool(tf.config.list_physical_devices("GPU"))
    assert make().jit_compile == gpu


def one_step(replicas, losses, data, batch_size, **kw):
    """Trains a fresh distiller for one epoch on some replicas; returns weights and logs."""
    with tfkd.runtime.strategy("auto", replicas).scope():
        keras.utils.set_random_seed(0)
        student = tiny.model(seed=1, regularizer=keras.regularizers.L2(0.01))
        distiller = make(losses(), student, tiny.model(width=8, seed=2), **kw)
        logs = distiller.fit(
            tf.data.Dataset.from_tensor_slices(data).batch(batch_size), shuffle=False, verbose=0
        ).history
    return values(distiller.student), {key: value[0] for key, value in logs.items()}


def largest_difference(a, b):
    """The largest difference of two lists of arrays, relative to the largest value of each."""
    return max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(a, b))


@pytest.mark.parametrize(
    "replicas, loss", [(2, "function"), pytest.param(4, "instance", marks=pytest.mark.slow)]
)
def test_replicas_give_the_update_of_one(replicas, loss):
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if loss == "function":
        label_loss = lambda y, p: keras.losses.sparse_categorical_crossentropy(  # noqa: E731
            y, p, from_logits=True
        )
        label_loss.__name__ = "from_logits"
    run = {
        "losses": lambda: ["kd", Relational(weight=0.1)],
        "data": tiny.data(16),
        "batch_size": 16,
        "compile_arguments": {"loss": label_loss},
    }
    expected, expected_logs = one_step(1, **run)
    found, logs = one_step(replicas, **run)
    assert largest_difference(expected, found) < 1e-5
    assert logs == pytest.approx(expected_logs, rel=1e-4)


@pytest.mark.slow
def test_relational_losses_can_stay_on_the_replica():
    run = {"losses": lambda: [Relational()], "data": tiny.data(16), "batch_size": 16}
    expected, _ = one_step(1, **run)
    found, _ = one_step(2, relational_scope="replica", **run)
    assert largest_difference(expected, found) > 1e-4


class Adversarial(tfkd.Distiller):
    """A method of two networks: a critic tells student from teacher, the student deceives it."""

    extra_optimizers = {"critic_optimizer": {"name": "adam", "learning_rate": 0.1}}

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.critic = keras.layers.Dense(1)

    def build(self, input_shape):
        self.critic.build((None, tiny.CLASSES))

    def optimizers(self):
        return {
            "optimizer": (self.optimizer, self.student.trainable_variables),
            "critic_optimizer": (self.critic_optimizer, self.critic.trainable_variables),
        }

    def train_step(self, data):
        batch = self.unpack(data)
        teacher = self.observe_teacher(batch)
        with tf.GradientTape(persistent=True) as tape:
            student = self.observe_student(batch)
            real, fake = self.critic(teacher["logits"]), self.critic(student["logits"])
            deceit = ops.mean(ops.softplus(-ops.cast(fake, "float32")))
            doubt = ops.mean(ops.softplus(ops.cast(fake - real, "float32")))
            objective = self.objective(batch, {"deceit": (1.0, deceit)})
            critic_objective = self.auxiliary_objective(batch, {"doubt": (1.0, doubt)})
        optimizers = self.optimizers()
        self.update(tape, objective, *optimizers["optimizer"])
        self.update(tape, critic_objective, *optimizers["critic_optimizer"])
        return self.logs(batch, student["logits"])


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_several_optimizers_update_their_own_variables_and_resume(policy, tmp_path):
    keras.config.set_dtype_policy(policy)

    def make_adversarial(rate, critic_rate, seed=1):
        distiller = Adversarial(tiny.model(seed=seed), tiny.model(seed=2))
        critic_optimizer = keras.optimizers.Adam(critic_rate)
        distiller.compile(tfkd.optimizers.SGD(rate), critic_optimizer=critic_optimizer)
        return distiller

    x, y = tiny.data()
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        distiller = make_adversarial(*rates)
        groups = [distiller.student.trainable_variables, distiller.critic.trainable_variables]
        before = [[v.numpy() for v in group] for group in groups]
        for _ in range(8):
            # The first steps are skipped, until the scale of the loss no longer overflows.
            distiller.train_on_batch(x, y)
        moved = [
            any(not np.array_equal(a, v.numpy()) for a, v in zip(values_, group))
            for values_, group in zip(before, groups)
        ]
        assert moved == [rate > 0 for rate in rates]
        both = (distiller.optimizer, distiller.critic_optimizer)
        scaled = [isinstance(o, keras.optimizers.LossScaleOptimizer) for o in both]
        assert scaled == [policy == "mixed_float16"] * 2

    first = make_adversarial(0.1, 0.1)
    first.train_on_batch(x, y)
    checkpoint.save(tmp_path / "checkpoint.npz", first, {})
    second = make_adversarial(0.1, 0.1, seed=3)
    checkpoint.restore(tmp_path / "checkpoint.npz", second)
    for distiller in (first, second):
        distiller.train_on_batch(x, y)
    state = checkpoint.variables_of
    assert_equal(*([v.numpy() for v in state(d)] for d in (first, second)))


def test_a_student_whose_graph_is_unknown_trains():
    student = tiny.Subclassed()
    loss = tfkd.losses.get(Hint(spots=[("body", "stage1")]))
    distiller = make(["kd", loss], student)
    x, y = tiny.data()
    distiller.fit(x, y, verbose=0)
    assert student.built and loss.connector.kernel.shape == (4, 8)
    assert {v.path for v in loss.trainable_variables} <= {
        v.path for v in distiller.trainable_variables
    }


class Softmaxed(tiny.Subclassed):
    def call(self, inputs):
        return ops.softmax(super().call(inputs))


def with_end(layer):
    model = tiny.model()
    return keras.Model(model.input, layer(model.output), name="ended")


def dense_with_softmax():
    model = tiny.model()
    dense = keras.layers.Dense(tiny.CLASSES, activation="softmax")
    return keras.Model(model.input, dense(model.get_layer("pooled").output))


def nested_softmax():
    inputs = keras.Input(tiny.SHAPE)
    return keras.Model(inputs, with_end(keras.layers.Softmax())(inputs))


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: with_end(keras.layers.Softmax()),
        lambda: with_end(keras.layers.Activation("softmax")),
        lambda: with_end(keras.layers.Activation("sigmoid")),
        lambda: with_end(ops.softmax),
        dense_with_softmax,
        nested_softmax,
    ],
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_probabilities_are_an_error(make_model, role):
    models = {"student": tiny.model(), "teacher": tiny.model(seed=1)}
    models[role] = make_model()
    with pytest.raises(UsageError, match=f"{role.title()} .* outputs probabilities .*needs logits"):
        tfkd.KnowledgeDistiller(**models)


def two_inputs(form):
    """A classifier of an image and a vector, which it takes as a list or a dictionary."""
    inputs = {"image": keras.Input(tiny.SHAPE, name="image"), "age": keras.Input((2,), name="age")}
    x = keras.layers.GlobalAveragePooling2D()(inputs["image"])
    outputs = keras.layers.Dense(5)(keras.layers.Concatenate()([x, inputs["age"]]))
    return keras.Model(inputs if form is dict else [*inputs.values()], outputs, name="two")


@pytest.mark.parametrize("form", [list, dict])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_of_two_inputs_is_refused_in_one_line(role, form):
    models = {"student": tiny.model(), "teacher": tiny.model(8, seed=1), role: two_inputs(form)}
    with pytest.raises(UsageError, match=rf"{role.title()} 'two' takes 2 inputs .*age.* one input"):
        tfkd.KnowledgeDistiller(**models)


@pytest.mark.parametrize("dataset", [False, True])
@pytest.mark.parametrize(
    "inputs, message",
    [
        (lambda x: {"image": x}, r"a dict of 1 \(image\); the student takes one tensor"),
        (lambda x: (x, x[:, 0, 0]), "a tuple of 2; the student takes one tensor"),
    ],
)
def test_data_of_several_inputs_is_refused_in_one_line(inputs, message, dataset):
    x, y = tiny.data(8)
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(8, seed=1))
    distiller.compile("sgd")
    data = (inputs(x), y)
    if dataset:
        data = (tf.data.Dataset.from_tensor_slices(data).batch(4),)
    with pytest.raises(UsageError, match=message):
        distiller.fit(*data, verbose=0)


def test_probabilities_of_a_subclassed_model_are_an_error_at_the_first_batch():
    distiller = make(teacher=Softmaxed())
    x, y = tiny.data()
    for data in ([x, y], [tf.data.Dataset.from_tensor_slices((x, y)).batch(8)]):
        with pytest.raises(UsageError, match="rows that add up to 1"):
            distiller.fit(*data, verbose=0)


@pytest.mark.parametrize(
    "models, message",
    [
        (
            (tiny.model, lambda: tiny.model(classes=7)),
            r"student logits \(None, 5\) and .*\(None, 7\)",
        ),
        ((tiny.model, lambda: "resnet20"), "Teacher must be a keras.Model; received str"),
        ((tiny.model, lambda: with_end(keras.layers.Reshape((1, 5)))), "shape .batch, classes."),
        (
            (tiny.model, lambda: tfkd.models.create("resnet8", 5, (32, 32, 3))),
            r"takes inputs of shape \(None, 8, 8, 3\) and teacher 'resnet8' \(None, 32, 32, 3\)",
        ),
    ],
)
def test_models_that_do_not_fit(models, message):
    student, teacher = (make_model() for make_model in models)
    with pytest.raises(UsageError, match=message):
        tfkd.KnowledgeDistiller(student, teacher).compile()


@pytest.mark.parametrize(
    "loss",
    ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()],
)
def test_a_loss_of_probabilities_is_an_error(loss):
    with pytest.raises(UsageError, match="from_logits=True"):
        make(compile_arguments={"loss": loss})


@pytest.mark.parametrize("label", [-1, tiny.CLASSES])
def test_labels_outside_the_classes(label):
    x, y = tiny.data()
    y[3] = label
    message = f"label {label}, and student 'tiny' has 5 classes: .* 0 to 4"
    with pytest.raises(UsageError, match=message):
        make().fit(x, y, verbose=0)
    with pytest.raises(UsageError, match=message):
        make().evaluate(x, y, verbose=0)


def test_what_training_needs_is_said_before_it():
    x, y = tiny.data()
    distiller = tfkd.KnowledgeDistiller(tiny.model(), tiny.model(seed=1))
    with pytest.raises(UsageError, match="Compile the distiller"):
        distiller.fit(x, y)
    distiller.compile("sgd")
    for labels, message in (
        (None, "need labels"),
        (y + 0.5, "whole numbers"),
        (np.array(["cat"] * len(x)), "Labels must be numbers"),
        (np.eye(tiny.CLASSES)[y], r"use keras.losses.CategoricalCrossentropy\(from_logits=True"),
    ):
        with pytest.raises(UsageError, match=message):
            distiller.fit(x, labels, verbose=0)
    distiller.student.trainable = False
    with pytest.raises(UsageError, match="nothing to train"):
        distiller.fit(x, y)


@pytest.mark.parametrize("loss", ["nope", ["mse"], 3])
def test_a_loss_that_is_none(loss):
    with pytest.raises(UsageError, match="Unknown loss|one Keras loss or function"):
        make(compile_arguments={"loss": loss})


def test_a_lambda_can_be_the_loss():
    loss = lambda y, p: keras.losses.sparse_categorical_crossentropy(  # noqa: E731
        y, p, from_logits=True
    )
    one, other = (make(compile_arguments={**EAGER, "loss": given}) for given in (loss, None))
    x, y = tiny.data()
    logs = [d.train_on_batch(x, y, return_dict=True) for d in (one, other)]
    assert logs[0] == pytest.approx(logs[1])


def clipped_update(clip_norm, replicas=1, scaled=False):
    """The step of SGD(1.0) for the gradient (3, 4), half of it on each of two replicas."""
    with tfkd.runtime.strategy("auto", replicas).scope():
        distiller = make([])
        variables = [keras.Variable([0.0]), keras.Variable([0.0])]
        optimizer = keras.optimizers.SGD(1.0)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        optimizer.build(variables)

        @tf.function
        def run():
            def step():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                parts = tf.one_hot(replica, 2) if replicas == 2 else tf.ones(2)
                with tf.GradientTape() as tape:
                    objective = ops.sum(3 * parts[0] * variables[0] + 4 * parts[1] * variables[1])
                distiller.update(tape, objective, optimizer, variables, clip_norm=clip_norm)

            tf.distribute.get_strategy().run(step)

        run()
    return [-float(variable.numpy()[0]) for variable in variables]


@pytest.mark.parametrize("replicas, scaled", [(1, False), (1, True), (2, False)])
def test_an_update_is_clipped_by_the_norm_of_the_whole_gradient(replicas, scaled):
    assert clipped_update(None, replicas, scaled) == pytest.approx([3, 4])
    assert clipped_update(6.0, replicas, scaled) == pytest.approx([3, 4])
    assert clipped_update(1.0, replicas, scaled) == pytest.approx([0.6, 0.8])
