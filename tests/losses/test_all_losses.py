"""The contract that every loss keeps."""

import inspect
import re
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_samples import IDS, LOSSES, PAIRWISE, VARIANTS, Sample

import tfkd
from tfkd import losses, taps
from tfkd.errors import UsageError
from tfkd.schedules import Schedule


def test_ids_weights_spots():
    for name, row in LOSSES.items():
        loss = losses.get(name)
        # Schedules are compared by their repr.
        weight = repr(loss.weight) if isinstance(loss.weight, Schedule) else loss.weight
        assert (weight, loss.spots, loss.relational) == (row.weight, row.spots, row.relational)


def test_a_subclass_without_an_id_does_not_take_its_parents_place():
    class Softer(losses.KnowledgeDistillation):
        pass

    class Softest(Softer):
        id = "softest"

    assert losses.available()["kd"] is type(losses.get("kd")) is losses.KnowledgeDistillation
    assert type(losses.get("softest")) is Softest
    assert type(losses.get(Softer)) is Softer


def test_arguments_of_a_loss_that_is_made_already_are_an_error():
    loss = losses.get("kd", weight=2.0)
    assert losses.get(loss) is loss
    with pytest.raises(UsageError, match=r"'kd' is made already .*losses.get\('kd', weight=3\)"):
        losses.get(loss, weight=3)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_vectors_of_different_widths_are_no_logits_of_the_same_classes(name):
    loss = losses.get(name, spots=[("pooled", "pooled")])
    with pytest.raises(UsageError, match="compares logits class by class"):
        loss.build(shapes((3,)), shapes((4,)))


@pytest.mark.parametrize("name", sorted({*IDS, *VARIANTS} - {"crd"}))  # CRD: in its own file
@pytest.mark.parametrize("rows", [[1], [0, 5], [1, 2, 4], [0, 1, 2, 3, 4, 5]])
def test_mask_means_loss_on_the_selected_times_their_fraction(name, rows):
    sample = Sample(name)
    mask = np.isin(np.arange(sample.batch), rows)
    expected = sample.value(**sample.rows(rows)) * len(rows) / sample.batch
    if len(rows) == 1 and name in PAIRWISE:
        expected = 0.0
    for form in (mask, mask.astype("int32"), mask.astype("float32")):
        np.testing.assert_allclose(sample.value(mask=tf.constant(form)), expected, rtol=2e-5)


LOGITS = [name for name, row in LOSSES.items() if row.spots in ("logits", "teachers")]


@pytest.mark.parametrize("name", [*LOGITS, *VARIANTS])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_what_samples_hold_that_are_not_selected_has_no_effect(name, junk):
    sample = Sample(name)
    mask = tf.constant([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    spoilt = [
        [tf.where(mask[:, None] > 0, tap, junk) for tap in taps]
        for taps in (sample.student, sample.teacher)
    ]
    expected, gradients = sample.value_and_gradients(sample.student, sample.teacher, mask)
    value, found = sample.value_and_gradients(*spoilt, mask)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(found, gradients)
    of_samples = np.abs(gradients).sum((0, 2))
    assert not np.any(of_samples[[1, 4]]) and of_samples[0] > 0


@pytest.mark.parametrize("name", IDS)
def test_one_mask_for_all_equals_the_same_mask_for_each_spot(name):
    sample = Sample(name)
    mask = tf.constant([1, 0, 1, 1, 0, 1])
    keras.utils.set_random_seed(1)
    once = sample.value(mask=mask)
    if name != "crd":  # draws in every call
        each = sample.value(mask=[mask] * len(sample.student))
        np.testing.assert_array_equal(once, each)
    with pytest.raises(UsageError, match="one mask per spot"):
        sample.value(mask=[mask] * (len(sample.student) + 1))


@pytest.mark.parametrize("name", IDS)
def test_config_makes_an_equal_loss(name):
    loss = losses.get(name, weight=2.5, spots=[("a", "b")], name="mine")
    config = loss.get_config()
    assert set(inspect.signature(type(loss)).parameters) - {"kwargs"} <= set(config)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss)
    assert copy.get_config() == config
    weight = "LinearWarmUp(start=0.0, end=2.5, epochs=20)" if name == "reviewkd" else "2.5"
    assert (repr(copy.weight), copy.spots, copy.name) == (weight, [("a", "b")], "mine")


@pytest.mark.parametrize("name", IDS)
def test_first_call_and_build_make_the_same_connectors(name):
    weights = []
    for build in (True, False):
        keras.utils.set_random_seed(7)
        sample = Sample(name, build=build)
        assert sample.loss.built == build
        sample.value()
        weights.append([np.array(weight) for weight in sample.loss.weights])
    for built, called in zip(*weights, strict=True):
        np.testing.assert_array_equal(built, called)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", IDS)
def test_half_precision_taps_are_compared_in_float32(name, policy):
    expected = Sample(name).value()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        sample = Sample(name)
        half = policy.removeprefix("mixed_")
        student, teacher = (
            [tf.cast(tap, half) for tap in taps] for taps in (sample.student, sample.teacher)
        )
        value = sample.value(student, teacher)
    finally:
        keras.config.set_dtype_policy("float32")
    assert value.dtype == tf.float32
    assert {variable.dtype for variable in sample.loss.weights} <= {"float32"}
    rounded = sample.value(
        [tf.cast(tap, "float32") for tap in student], [tf.cast(tap, "float32") for tap in teacher]
    )
    if name != "crd":  # draws new negatives
        np.testing.assert_array_equal(value, rounded)
    if not LOSSES[name].random:
        np.testing.assert_allclose(value, expected, rtol=0.05)


OF_MAPS = [name for name in IDS if any(len(tap.shape) == 4 for tap in Sample(name, False).student)]


@pytest.mark.parametrize("name", OF_MAPS)
def test_tokens_of_a_square_are_compared_as_the_map(name):
    """With a class token too, which only losses that do not need maps see."""
    sample = Sample(name)
    needs_maps = sample.loss.tap_rank in (4, (2, 4))
    for number in (0, 1) if needs_maps else (0,):
        sides = [
            [as_tokens(tap, number) if len(tap.shape) == 4 else tap for tap in side]
            for side in (sample.student, sample.teacher)
        ]
        np.testing.assert_allclose(sample.value(*sides), sample.value(), rtol=1e-6)
        # Built from the shapes of tokens it has the same weights.
        built = Sample(name, False).loss
        built.set_classifiers(sample.loss.student_classifier, sample.loss.teacher_classifier)
        built.build(*([tap.shape for tap in side] for side in sides))
        of_maps = [tuple(weight.shape) for weight in sample.loss.weights]
        assert [tuple(weight.shape) for weight in built.weights] == of_maps


def as_tokens(features, class_tokens):
    """Returns a map as tokens row by row, behind class tokens that are far from all."""
    batch, height, width, channels = features.shape
    tokens = tf.reshape(features, (batch, height * width, channels))
    return tf.concat([tf.fill((batch, class_tokens, channels), 100.0), tokens], 1)


@pytest.mark.parametrize("name", IDS)
def test_teacher_gets_no_gradient(name):
    sample = Sample(name)
    with tf.GradientTape() as tape:
        tape.watch(sample.teacher)
        value = sample.value()
    assert tape.gradient(value, sample.teacher) == [None] * len(sample.teacher)


@pytest.mark.parametrize("name", sorted(set(IDS) - {"crd"}))
def test_batch_of_unknown_size(name):
    sample = Sample(name)
    specs = [
        [tf.TensorSpec((None, *tap.shape[1:])) for tap in taps]
        for taps in (sample.student, sample.teacher)
    ]

    @tf.function(input_signature=[*specs, tf.TensorSpec((None,))], autograph=False)
    def value(student, teacher, mask):
        return sample.value(student, teacher, mask)

    mask = tf.constant([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    expected = sample.value(mask=mask)
    np.testing.assert_allclose(value(sample.student, sample.teacher, mask), expected, rtol=1e-5)


def shapes(*shapes):
    return [(4, *shape) for shape in shapes]


@pytest.mark.parametrize(
    "name, student, teacher, message",
    [
        *(
            (name, shapes((3,)), shapes((3,), (3,)), "1 student taps and 2")
            for name in ("kd", "rkd")
        ),
        *(
            (name, shapes((3,)), shapes((3,)), "needs taps")
            for name in ("at", "nst", "vid", "ft", "ofd", "cat_kd")
        ),
        ("at", [(4, None, None, 3)], shapes((8, 8, 3)), "student tap 0"),
        ("kd", shapes((3,)), shapes((4,)), "the same classes"),
        ("dkd", shapes((3,)), shapes((4,)), "the same classes"),
        ("dkd", shapes((2, 3)), shapes((2, 3)), "needs taps"),
        ("kd", shapes((16, 3)), shapes((16, 3)), r"logits \(batch, classes\); student tap 0 has"),
        ("kd", shapes((4, 4, 3)), shapes((4, 4, 3)), "take a loss of features, such as 'fitnet'"),
        ("fitnet", shapes((8, 8, 3)), shapes((3,)), "fitnet_adapter_0"),
        ("fitnet", shapes((8, 4, 3)), shapes((4, 8, 3)), "smaller along the other"),
        ("fsp", shapes((8, 8, 3)), shapes((8, 8, 3)), "at least two spots"),
        ("fsp", shapes((8, 8, 3), (4, 4, 3)), shapes((8, 8, 3), (4, 4, 5)), "same channels"),
        ("ft", shapes((4, 4, 3)), shapes((4, 4, 1)), "leaves none"),
        ("irg", shapes((4, 4, 3), (3,)), shapes((4, 4, 3), (3,)), "needs four spots"),
        (
            "irg",
            shapes((4, 4, 3), (2, 2, 3), (3,), (5,)),
            shapes((4, 4, 3), (2, 2, 3), (3,), (4,)),
            "the same classes",
        ),
        ("srrl", shapes((4, 4, 2)), shapes((4, 4, 4)), "which takes 3 features"),
        ("srrl", shapes((4, 4, 4, 3)), shapes((4, 4, 3)), "vectors .*, or tokens .*, or maps"),
        *(
            (name, shapes((6, 3)), shapes((4, 4, 3)), "of a square number.* student tap 0 has .*6")
            for name in ("fitnet", "at", "reviewkd")
        ),
        ("cat_kd", shapes((4, 4, 4)), shapes((4, 4, 3)), "the student's tap .* which takes 3"),
        ("cat_kd", shapes((1, 4, 3)), shapes((4, 4, 3)), "take a smaller resolution"),
        ("crd", shapes((3,), (3,)), shapes((3,), (3,)), "one spot"),
        ("crd", shapes((3,)), shapes((3,)), "set_examples"),
    ],
)
def test_wrong_shapes_give_one_clear_line(name, student, teacher, message):
    with pytest.raises(UsageError, match=message) as error:
        loss = losses.get(name)
        loss.set_classifiers(*[taps.Classifier(np.ones((3, 5)))] * 2)
        loss.build(student, teacher)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["kd", "at", "sp", "rkd", "pkt", "nst", "fsp", "dkd", "mlkd"])
def test_zero_between_equal_features(name):
    sample = Sample(name)
    if name == "dkd":
        value = sample.value(sample.teacher, sample.teacher)
    else:
        loss = losses.get(name)
        value = loss(sample.student, sample.student)
    assert abs(value) < 1e-6
    assert abs(sample.value()) > 1e-4


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("dkd", {"temperature": 0}),
        ("dkd", {"standardize": "yes"}),
        ("kd", {"standardize": 1}),
        ("kd", {"standardize": True, "activation": "sigmoid"}),
        ("dist", {"temperature": 0}),
        ("nkd", {"temperature": -1}),
        ("wsld", {"temperature": 0}),
        ("ttm", {"power": 0}),
        ("wttm", {"power": -0.1}),
        ("mlkd", {"temperatures": ()}),
        ("mlkd", {"temperatures": (2.0, 0.0)}),
        ("mlkd", {"select": None}),
        ("mlkd", {"standardize": 2}),
        ("ab", {"margin": -1.0}),
        ("ft", {"rate": 0}),
        ("ft", {"rate": 1.5}),
        ("crd", {"negatives": 0}),
        ("crd", {"temperature": -0.07}),
        ("crd", {"momentum": 1.5}),
        ("at", {"spots": "everywhere"}),
        ("at", {"power": 2}),
        ("srrl", {"regression_weight": -1.0}),
        ("cat_kd", {"resolution": 0}),
        ("reviewkd", {"warm_up_epochs": -1}),
        ("mgd", {"drop_rate": 1.5}),
        ("semckd", {"batch_size": 3}),
    ],
)
def test_arguments_out_of_range(name, arguments):
    with pytest.raises(UsageError):
        losses.get(name, **arguments)


@pytest.mark.parametrize("name", IDS)
def test_example_in_the_docstring_runs(name):
    example = re.search(
        r"Example:\n    ```python\n(.*?)```", losses.available()[name].__doc__, re.S
    )
    random = np.random.default_rng(0)
    namespace = {
        key: tf.constant(random.normal(size=shape), "float32")
        for side in ("student", "teacher")
        for key, shape in {
            f"{side}_logits": (4, 5),
            f"{side}_vector": (4, 6),
            f"{side}_map": (4, 8, 8, 3),
            f"later_{side}_map": (4, 4, 4, 5),
        }.items()
    }
    namespace |= {f"{side}_kernel": np.ones((3, 5)) for side in ("student", "teacher")}
    labels = np.arange(20) % 5
    namespace |= {"labels": labels[:4], "training_labels": labels, "indices": np.arange(4)}
    exec(textwrap.dedent(example[1]), {"tfkd": tfkd}, namespace)
    assert namespace["value"].shape == ()
    assert np.isfinite(namespace["value"])
