"""Several teachers, in distillers and in the losses that weigh them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd.errors import UsageError
from tfkd.losses.agreeing_teachers import minimum_norm_weights


def distil(teachers, losses, **arguments):
    keras.utils.set_random_seed(0)  # Of connectors.
    distiller = tfkd.KnowledgeDistiller(tiny.model(seed=9), teachers, losses=losses, **arguments)
    distiller.compile(tfkd.optimizers.SGD(0.05), run_eagerly=True)
    return distiller


def teachers():
    return [tiny.model(6, seed=1), tiny.model(5, seed=2)]


def test_the_mean_of_teachers_teaches_and_none_of_them_changes():
    models = teachers()
    before = [tiny.values(model.variables) for model in models]
    x, y = tiny.data(8)
    found = []
    for given in (models, tfkd.models.ensemble(models)):
        distiller = distil(given, ["kd"])
        distiller.fit(x, y, shuffle=False, verbose=0)
        found.append(tiny.values(distiller.student.variables))
        for model, values in zip(models, before):
            tiny.assert_equal(tiny.values(model.variables), values)
        tracked = {id(v) for v in distiller.variables}
        assert not tracked & {id(v) for model in models for v in model.variables}
    tiny.assert_equal(*found)


def test_kd_from_each_teacher_pulls_where_their_mean_softened_prediction_is():
    models = teachers()
    x, _ = tiny.data(8)
    student = tf.constant(tiny.model(seed=9)(x))
    loss = tfkd.losses.get("kd", spots="teachers", temperature=2.0)
    logits = [model(x) for model in models]
    mean = tfkd.models.mean_prediction(logits, 2.0)
    gradients = []
    for spots in (logits, [mean]):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss([student] * len(spots), spots) / len(spots)
        gradients.append(tape.gradient(value, student))
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_a_word_for_spots_is_taken_as_a_flag_gives_it():
    assert tfkd.losses.get("kd", spots=("teachers",)).spots == "teachers"


@pytest.mark.parametrize("losses", [["ebkd"], ["aekd"], ["camkd", "camkd_features"]])
def test_outputs_of_each_teacher_may_come_with_the_data(losses):
    models = teachers()
    x, y = tiny.data(8)
    logs = []
    for recorded in (False, True):
        distiller = distil(models, losses)
        labels = y
        if recorded:
            names = ["teacher1", "teacher2", "teacher1/stage2", "teacher2/stage2"]
            found = tfkd.taps.extractor(distiller.teacher, names)(x)
            labels = {"label": y, "teacher": {tap: np.array(v) for tap, v in found.items()}}
        logs.append(distiller.train_on_batch(x, labels, return_dict=True))
    for name, value in logs[0].items():
        assert logs[1][name] == pytest.approx(value, rel=1e-4), name


def test_teachers_that_are_recorded():
    student = tiny.model()
    x, y = tiny.data(8)
    logits = np.random.default_rng(0).normal(size=(3, 8, tiny.CLASSES)).astype("float32")
    shape = (tiny.CLASSES,)
    teacher = tfkd.models.recorded(student, teacher1=shape, teacher2=shape)
    distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["aekd"])
    distiller.compile("sgd", run_eagerly=True)
    given = dict(zip(("logits", "teacher1", "teacher2"), logits))
    logs = distiller.fit(x, {"label": y, "teacher": given}, verbose=0).history
    assert np.isfinite(logs["aekd_loss"][0])


def test_half_precision_of_one_teacher():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = tiny.model(6, seed=1)
    finally:
        keras.config.set_dtype_policy("float32")
    found = []
    for first in (half, tiny.model(6, seed=1)):
        distiller = distil([first, tiny.model(5, seed=2)], ["aekd", "ebkd"])
        found.append(distiller.train_on_batch(*tiny.data(8), return_dict=True))
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=2e-2), name


def test_the_gradients_of_aekd_are_those_of_the_divergences():
    random = np.random.default_rng(0)
    student, *teacher_logits = tf.constant(random.normal(size=(4, 6, 5)), "float32")
    loss = tfkd.losses.get("aekd", temperature=3.0)
    kd = tfkd.losses.get("kd", temperature=3.0)
    expected = []
    for logits in teacher_logits:
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = kd([student], [logits])
        expected.append(tf.reduce_mean(tape.gradient(value, student), 0))
    found = loss.gradients([student] * 3, teacher_logits, [None] * 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("largest", [1.0, 0.6, 0.4])
def test_weights_are_those_of_the_shortest_combination(largest):
    """Against a fine grid."""
    steps = np.linspace(0, 1, 201)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps])
    grid = grid[((grid > -1e-9) & (grid <= largest + 1e-9)).all(1)]
    random = np.random.default_rng(0)
    for scale in (1.0, 1e-6):
        vectors = scale * random.normal(size=(3, 4))
        gram = vectors @ vectors.T
        found = np.array(minimum_norm_weights(tf.constant(gram, "float32"), largest), "float64")
        assert found.sum() == pytest.approx(1, abs=1e-5)
        assert found.min() >= -1e-6 and found.max() <= largest + 1e-6
        best = np.einsum("ni,ij,nj->n", grid, gram, grid).min()
        assert found @ gram @ found <= best * (1 + 1e-4) + 1e-12 * scale**2


def test_a_tolerance_as_published_leaves_weights_where_they_start():
    gram = tf.constant(1e-5 * np.eye(3) + 1e-6, "float32")
    np.testing.assert_allclose(minimum_norm_weights(gram, 0.6, 1e-3), [0.6, 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(minimum_norm_weights(gram, 0.6), [1 / 3] * 3, atol=1e-4)


def test_dgkd_leaves_some_teachers_out_of_each_batch():
    random = np.random.default_rng(0)
    student, *teacher_logits = tf.constant(random.normal(size=(4, 6, 5)), "float32")
    one = tfkd.losses.get("kd", temperature=2.0)
    each = [float(one([student], [logits])) for logits in teacher_logits]
    loss = tfkd.losses.get("dgkd", temperature=2.0, drop=2, seed=1)
    given = [student] * 3, teacher_logits
    # Outside of training it is the sum.
    assert float(loss(*given)) == pytest.approx(sum(each), rel=1e-5)
    drawn = [float(loss(*given, training=True)) for _ in range(12)]
    found = {number for value in drawn for number in range(3) if abs(value - each[number]) < 1e-5}
    assert found == {0, 1, 2} and len(set(np.round(drawn, 4))) == 3
    # One remains, however few there are.
    assert float(loss([student], teacher_logits[:1], training=True)) == pytest.approx(each[0])


def test_teachers_that_are_certain_beyond_rounding_count_alike():
    certain = tf.constant(np.eye(5)[:4] * 1e4, "float32")
    weights = tfkd.losses.get("ebkd").teacher_weights([certain] * 2, [certain, certain], None, None)
    np.testing.assert_allclose(weights, np.full((4, 2), 0.25), rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: tfkd.KnowledgeDistiller(s, tiny.model(), losses=["aekd"]), "single teacher"),
        (lambda s: tfkd.KnowledgeDistiller(s, teachers=teachers()), "teacher=.first, second."),
        (lambda s: tfkd.KnowledgeDistiller(s, [s, tiny.model()]), "share .* variables"),
        (lambda s: tfkd.KnowledgeDistiller(s, teachers(), losses=["at"]), "'teacher1/stage1'"),
        (lambda s: tfkd.IAKD(s, teachers()), "IAKD needs one teacher"),
        (lambda s: tfkd.SAKD(s, teachers()), "SAKD needs a teacher"),
        (lambda s: tfkd.losses.get("aekd", largest_weight=1.5), "largest_weight must be"),
        (
            lambda s: tfkd.losses.get("aekd", largest_weight=0.3).build([(4, 5)] * 3, [(4, 5)] * 3),
            "cannot add up to 1",
        ),
        (lambda s: tfkd.losses.get("ebkd").build([(4, 5)], [(4, 5)]), "weighs several teachers"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make(tiny.model(seed=9))
    assert "\n" not in str(error.value)
