"""Mutual learning: the equations, and what the distiller promises around them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers
from mutual_learning import assert_close, images, step, students, terms, unchanged, weights
from tiny import EAGER, assert_equal, values

import tfkd
from tfkd.errors import UsageError


def make(models=None, rate=0.1, compile_arguments=EAGER, peer_rates=None, **arguments):
    distiller = tfkd.MutualDistiller(models or students(), **arguments)
    peers = peer_rates and [keras.optimizers.SGD(rate, momentum=0.9) for rate in peer_rates]
    distiller.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        metrics=["accuracy"],
        peer_optimizers=peers,
        **compile_arguments,
    )
    return distiller


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("peer_rates", [None, [0.1]])
def test_a_step_is_that_of_deep_mutual_learning(peer_rates):
    x, y = images()
    distiller = make(
        temperature=3.0, mutual_weight=0.7, peer_rates=peer_rates, compile_arguments={}
    )
    by_hand = students()
    optimizers = [keras.optimizers.SGD(0.1, momentum=0.9) for _ in by_hand]
    for _ in range(2):
        loss = distiller.train_on_batch(x, y, return_dict=True)["loss"]
        # The logs of `train_on_batch` are means since the last reset.
        distiller.reset_metrics()
        expected = step(by_hand, optimizers, x, y, 3.0, 0.7)
        assert loss == pytest.approx(expected, rel=1e-5)
    assert_close(weights(by_hand), weights(distiller.students))
    assert not any(unchanged(weights(students())[:3], by_hand[0].variables[:3]))


@pytest.mark.parametrize("targets", ["mean", "pairwise"])
def test_three_learn_from_the_mean_of_the_others_or_from_each(targets):
    x, y = images()
    pairwise = targets == "pairwise"
    regularized = {"regularizer": keras.regularizers.L2(0.01)}
    distiller = make(students(3, **regularized), temperature=2.0, targets=targets)
    by_hand = students(3, **regularized)
    logits = [model(x, training=True) for model in students(3)]
    entropies, divergence = terms(logits, y, 2.0, pairwise)
    _, other = terms(logits, y, 2.0, not pairwise)
    assert float(divergence) != pytest.approx(float(other), rel=1e-2)
    optimizers = [keras.optimizers.SGD(0.1, momentum=0.9) for _ in by_hand]
    loss = step(by_hand, optimizers, x, y, 2.0, 1.0, pairwise=pairwise)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = {
        "student_loss": float(entropies[0]),
        "peers_loss": float(entropies[1] + entropies[2]),
        "mutual_loss": float(divergence),
        "loss": loss,
    }
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert_close(weights(by_hand), weights(distiller.students))


@pytest.mark.parametrize("cls", [tfkd.MutualDistiller, tfkd.KDCL])
def test_every_student_may_see_images_of_its_own(cls):
    pair = students(2)
    x, y = images()
    other, _ = images(seed=1)
    distiller = cls(pair)
    distiller.compile(tfkd.optimizers.SGD(0.1), **EAGER)
    data = x, {"label": y, "peer_images": (other,)}
    expected = [model(seen, training=True) for model, seen in zip(pair, (x, other))]
    found = distiller.observe_students(distiller.unpack(data))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    before = values(distiller.trainable_variables)
    distiller.fit(tf.data.Dataset.from_tensors(data), verbose=0)
    after = values(distiller.trainable_variables)
    assert not any(np.array_equal(a, b) for a, b in zip(before, after))
    with pytest.raises(
        UsageError, match="images for 3 students, and there are 2: set peer_views=2"
    ):
        distiller.unpack((x, {"label": y, "peer_images": (other, other)}))
    alone = tfkd.KnowledgeDistiller(pair[0])
    alone.compile(tfkd.optimizers.SGD(0.1), **EAGER)
    with pytest.raises(UsageError, match="trains one student, and the data has images for 2"):
        alone.unpack(data)


@pytest.mark.parametrize("targets", ["mean", "pairwise"])
def test_no_gradient_flows_into_what_is_taught(targets):
    """The closed form is that of constant targets: temperature · (own - mean of others) / n."""
    distiller = make(students(3), temperature=2.0, targets=targets)
    random = np.random.default_rng(0)
    logits = [tf.Variable(random.normal(size=(4, 5)), dtype="float32") for _ in range(3)]
    batch = distiller.unpack(images(4))
    with tf.GradientTape() as tape:
        value = distiller.mutual_loss(batch, logits)
    softened = np.array([softmax(z.numpy() / 2) for z in logits])
    expected = [2 * (own - (softened.sum(0) - own) / 2) / 4 for own in softened]
    assert_close(tape.gradient(value, logits), expected)


def test_regularizers_of_all_students_are_in_the_loss():
    x, y = images()
    models = students(2, regularizer=keras.regularizers.L2(0.01))
    logs = make(models, rate=0.0).train_on_batch(x, y, return_dict=True)
    kernels = [v.numpy() for model in models for v in model.variables if v.path.endswith("kernel")]
    squares = sum(np.sum(kernel**2) for kernel in kernels if kernel.ndim == 4)
    parts = logs["student_loss"] + logs["peers_loss"] + logs["mutual_loss"]
    assert logs["loss"] == pytest.approx(parts + 0.01 * squares, rel=1e-5)


def test_each_optimizer_moves_its_own_classifier_only():
    x, y = images()
    for still in range(3):
        rates = [0.0 if number == still else 0.1 for number in range(3)]
        distiller = make(students(3), rate=rates[0], peer_rates=rates[1:])
        assert list(distiller.optimizers()) == [
            "optimizer",
            "student2_optimizer",
            "student3_optimizer",
        ]
        before = [values(model.trainable_variables) for model in distiller.students]
        distiller.train_on_batch(x, y)
        for number, model in enumerate(distiller.students):
            same = unchanged(before[number], model.trainable_variables)
            assert all(same) if number == still else not any(same)


def test_one_optimizer_for_all_is_like_equal_ones_for_each():
    x, y = images()
    shared, separate = make(students(3)), make(students(3), peer_rates=[0.1, 0.1])
    assert list(shared.optimizers()) == ["optimizer"]
    for _ in range(2):
        shared.train_on_batch(x, y)
        separate.train_on_batch(x, y)
    assert_equal(weights(shared.students), weights(separate.students))


def test_optimizers_of_peers_may_be_names_and_settings():
    distiller = tfkd.MutualDistiller(students(3))
    distiller.compile("sgd", peer_optimizers=["adam", {"name": "sgd", "learning_rate": 0.25}])
    _, adam, sgd = [optimizer for optimizer, _ in distiller.optimizers().values()]
    assert isinstance(adam, keras.optimizers.Adam)
    assert float(sgd.learning_rate) == 0.25


def test_samples_of_weight_0_do_not_matter():
    def run(x, y):
        keras.utils.set_random_seed(0)
        distiller = make([tiny.Subclassed(), tiny.Subclassed()])
        return distiller.train_on_batch(x, y, sample_weight, return_dict=True), distiller

    x, y = images()
    sample_weight = np.tile([0.0, 2.0], 8).astype("float32")
    logs, distiller = run(x, y)
    other_x, other_y = x.copy(), y.copy()
    other_x[::2], other_y[::2] = 3 - x[::2], 4 - y[::2]
    other_logs, other = run(other_x, other_y)
    losses = ["loss", "student_loss", "peers_loss", "mutual_loss"]
    assert {name: other_logs[name] for name in losses} == {name: logs[name] for name in losses}
    assert_equal(weights(distiller.students), weights(other.students))
    # Weight 2 counts twice, and the divisor is the number of samples.
    keras.utils.set_random_seed(0)
    logits = [model(x[1::2]) for model in (tiny.Subclassed(), tiny.Subclassed())]
    entropies, divergence = terms(logits, y[1::2], 1.0)
    assert logs["mutual_loss"] == pytest.approx(float(divergence), rel=1e-5)
    assert logs["peers_loss"] == pytest.approx(float(entropies[1]), rel=1e-5)


@pytest.fixture(scope="module")
def trained():
    """Three classifiers after two epochs, with what `fit` logged."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    distiller = make(students(3), rate=0.02)
    x, y = images(20)
    validation = images(20, seed=1)
    history = distiller.fit(
        x, y, batch_size=8, epochs=2, validation_data=validation, verbose=0
    ).history
    return distiller, history, validation


def test_evaluate_tells_every_accuracy_their_mean_and_the_ensembles_and_changes_nothing(trained):
    distiller, history, (x, y) = trained
    before = weights(distiller.students)
    logs = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert_equal(before, weights(distiller.students))
    predictions = [softmax(np.array(model(x, training=False))) for model in distiller.students]
    accuracies = [np.mean(p.argmax(-1) == y) for p in predictions]
    assert len(set(accuracies)) > 1
    expected = {
        "loss": -np.mean(np.log(predictions[0][range(20), y])),
        "accuracy": accuracies[0],
        "student2_accuracy": accuracies[1],
        "student3_accuracy": accuracies[2],
        "mean_accuracy": np.mean(accuracies),
        "ensemble_accuracy": np.mean(np.mean(predictions, axis=0).argmax(-1) == y),
    }
    assert logs == pytest.approx(expected, rel=1e-5)
    validation = {name[4:]: value[-1] for name, value in history.items() if name[:4] == "val_"}
    assert validation == pytest.approx(expected, rel=1e-5)


def test_accuracies_of_training_are_those_of_the_step():
    x, y = images()
    distiller = make(students(3), rate=0.0)
    predictions = [softmax(np.array(model(x, training=True))) for model in students(3)]
    hits = np.array([p.argmax(-1) == y for p in predictions])
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = {
        "accuracy": hits[0].mean(),
        "student2_accuracy": hits[1].mean(),
        "student3_accuracy": hits[2].mean(),
        "mean_accuracy": hits.mean(),
        "ensemble_accuracy": np.mean(np.mean(predictions, axis=0).argmax(-1) == y),
    }
    assert {name: logs[name] for name in expected} == pytest.approx(expected)


def test_the_ensemble_is_an_ordinary_model(trained):
    distiller, _, (x, _) = trained
    learners = distiller.learners()
    assert list(learners) == ["student2", "student3", "ensemble"]
    assert learners["student3"] is distiller.students[2]
    ensemble = distiller.ensemble()
    assert learners["ensemble"] is ensemble and distiller.student is distiller.students[0]
    assert ensemble.count_params() == 3 * tiny.model().count_params()
    predictions = [softmax(np.array(model(x, training=False))) for model in distiller.students]
    mean = np.mean(predictions, axis=0)
    np.testing.assert_allclose(softmax(ensemble.predict(x, verbose=0)), mean, rtol=1e-4, atol=1e-6)


def test_students_of_one_name_make_an_ensemble():
    models = [tiny.model(seed=1), tiny.model(seed=2), tiny.model(8, seed=3)]
    ensemble = tfkd.MutualDistiller(models).ensemble()
    x, _ = images(4)
    mean = np.mean([softmax(np.array(model(x))) for model in models], axis=0)
    np.testing.assert_allclose(softmax(np.array(ensemble(x))), mean, rtol=1e-4, atol=1e-6)


def test_pictures_and_check(trained, tmp_path):
    distiller, history, validation = trained
    rows = [{name: value[i] for name, value in history.items()} for i in range(2)]
    for name, draw in distiller.pictures(rows).items():
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["mutual.png"]
    before = weights(distiller.students)
    report = distiller.check([validation])
    assert report.teacher is None and report.student["parameters"] == tiny.model().count_params()
    assert_equal(before, weights(distiller.students))


def test_subclassed_students_train():
    distiller = make([tiny.Subclassed(), tiny.Subclassed()])
    x, y = images()
    logs = distiller.fit(x, y, epochs=6, validation_data=(x, y), verbose=0).history
    assert logs["peers_loss"][-1] < logs["peers_loss"][0]
    assert {"val_student2_accuracy", "val_ensemble_accuracy"} <= set(logs)
    assert list(distiller.learners()) == ["student2"]
    with pytest.raises(UsageError, match="is subclassed, so it cannot be joined with the others"):
        distiller.ensemble()


def test_temperature_and_weight_may_be_schedules():
    x, y = images()
    schedule = tfkd.schedules.LinearWarmUp(0.0, 0.8, 2)
    temperature = tfkd.schedules.LinearWarmUp(1.0, 5.0, 2)
    distiller = make(rate=0.0, mutual_weight=schedule, temperature=temperature)
    logs = distiller.fit(x, y, batch_size=16, epochs=3, verbose=0).history
    logits = [model(x, training=True) for model in students()]
    for epoch, (weight, degree) in enumerate([(0.0, 1.0), (0.4, 3.0), (0.8, 5.0)]):
        entropies, divergence = terms(logits, y, degree)
        assert logs["mutual_loss"][epoch] == pytest.approx(float(divergence), rel=1e-4)
        expected = float(tf.add_n(entropies) + weight * divergence)
        assert logs["loss"][epoch] == pytest.approx(expected, rel=1e-5)


def classifier(shape=tiny.SHAPE, activation=None):
    inputs = keras.Input(shape)
    x = layers.Dense(tiny.CLASSES, activation=activation)(layers.Flatten()(inputs))
    return keras.Model(inputs, x, name="other")


def twice():
    model = tiny.model()
    return [model, model]


def sharing():
    model = tiny.model()
    return [model, keras.Model(model.input, layers.Dense(5)(model.get_layer("pooled").output))]


WRONG = {
    "one student": (lambda: [tiny.model()], {}, "a list of at least two keras.Models"),
    "no list": (lambda: tiny.model(), {}, "students must be a list of at least two"),
    "no model": (lambda: [tiny.model(), "resnet8"], {}, "must be a keras.Model; received str"),
    "the same twice": (twice, {}, "Two students share .* variables"),
    "shared variables": (sharing, {}, "Two students share .* variables, .*kernel"),
    "classes": (
        lambda: [tiny.model(), tiny.model(classes=7, name="more")],
        {},
        "Student 'tiny' has 5 classes and student 'more' 7: all must be built for the same",
    ),
    "inputs": (
        lambda: [tiny.model(), classifier((9, 9, 3))],
        {},
        r"Student 'tiny' takes inputs of shape \(None, 8, 8, 3\) and student 'other' \(None, 9",
    ),
    "softmax": (
        lambda: [tiny.model(), classifier(activation="softmax")],
        {},
        "Student 'other' outputs probabilities",
    ),
    "targets": (students, {"targets": "median"}, "Unknown targets 'median'.*mean, pairwise"),
    "temperature": (students, {"temperature": 0.0}, "temperature must be a number greater than 0"),
    "weight": (students, {"mutual_weight": -1.0}, "mutual_weight must be a number of at least 0"),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_wrong_arguments_are_one_line(mistake):
    models, arguments, message = WRONG[mistake]
    with pytest.raises(UsageError, match=message) as error:
        tfkd.MutualDistiller(models(), **arguments).compile()
    assert "\n" not in str(error.value)


SGD = keras.optimizers.SGD()
COMPILED_WRONG = {
    "too few": ({"peer_optimizers": ["sgd"]}, "one for each of the 2 students after the first"),
    "no list": ({"peer_optimizers": "sgd"}, "one for each of the 2 students.*received 'sgd'"),
    "peers' twice": ({"peer_optimizers": [SGD, SGD]}, "must be different objects"),
    "the first's": ({"optimizer": SGD, "peer_optimizers": ["sgd", SGD]}, "different objects"),
    "no optimizer": (
        {"peer_optimizers": ["sgd", "adm"]},
        r"peer_optimizers\[1\] must be a Keras optimizer, its name.*received 'adm'",
    ),
    "unknown": (
        {"generator_optimizer": "sgd"},
        "argument of MutualDistiller.compile 'generator_optimizer': .*one of .*peer_optimizers",
    ),
    "loss": ({"loss": "sparse_categorical_crossentropy"}, "expects probabilities"),
}


@pytest.mark.parametrize("mistake", list(COMPILED_WRONG))
def test_wrong_arguments_of_compile_are_one_line(mistake):
    arguments, message = COMPILED_WRONG[mistake]
    with pytest.raises(UsageError, match=message) as error:
        tfkd.MutualDistiller(students(3)).compile(**arguments)
    assert "\n" not in str(error.value)
