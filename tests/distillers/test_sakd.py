"""What spot-adaptive distillation must do, beside the published numbers (test_sakd_golden.py)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from keras import layers
from loss_samples import LOSSES
from tiny import values

import tfkd
from tfkd.distillers.sakd import routing_factor, same_architecture
from tfkd.errors import UsageError

STUDY = ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ft", "nst", "crd")
#: Losses that others have published since.
FURTHER = [name for name, row in LOSSES.items() if row.selecting]
PAIRS = {"homogeneous": 4, "heterogeneous": 6}


def make(losses=("at",), teacher_width=4, optimizer=None, compiled=None, **arguments):
    """A distiller ready to train; step by step, which is faster for few steps, by default."""
    teacher = tiny.model(teacher_width, name="teacher", seed=2)
    distiller = tfkd.SAKD(tiny.model(seed=1), teacher, losses, **arguments)
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.01),
        metrics=["accuracy"],
        **(compiled or {"run_eagerly": True}),
    )
    return distiller


def assert_close(one, other, tolerance=1e-5):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


def look(distiller, examples=16):
    """Returns the batch and what both models make of it, without changing the student."""
    data = tuple(map(tf.constant, tiny.data(examples)))
    batch = distiller.unpack(data)
    observed = distiller.observe_student(batch, training=False), distiller.observe_teacher(batch)
    return batch, *observed


# The routes.


@pytest.mark.parametrize("losses", [["at"], ["rkd"], ["fitnet", "rkd"], []], ids=str)
def test_all_decisions_on_one_side_give_that_network(losses):
    distiller = make(losses, teacher_width=6)
    batch, student, teacher = look(distiller)
    for decision, expected in ((0.0, student), (1.0, teacher)):
        decisions = tf.fill((16, len(distiller.spots)), decision)
        routed = distiller.route(batch, teacher, decisions)
        np.testing.assert_allclose(routed, expected["logits"], rtol=1e-4, atol=1e-5)


def test_samples_take_their_own_routes():
    distiller = make(["at"], teacher_width=6)
    batch, student, teacher = look(distiller)
    decisions = tf.cast(tf.range(16)[:, None] % 2 == 0, "float32") * tf.ones((1, 3))
    routed = distiller.route(batch, teacher, decisions)
    np.testing.assert_allclose(routed[::2], teacher["logits"][::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(routed[1::2], student["logits"][1::2], rtol=1e-4, atol=1e-5)


def test_nobody_distilled_leaves_the_labels():
    distiller = make(["at", "rkd"])
    batch, student, teacher = look(distiller)
    masks = {spot: tf.zeros(16) for spot in distiller.spots}
    for _, value in distiller.distillation_terms(batch, student, teacher, masks).values():
        assert float(value) == 0.0


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("mobilenet_v2", "vgg8"),
        ("shufflenet_v1", "wrn_16_2"),
        pytest.param("mobilenet_v2", "vgg13", marks=pytest.mark.slow),
        pytest.param("shufflenet_v1", "wrn_40_2", marks=pytest.mark.slow),
        pytest.param("vgg8", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_pairs_of_different_families_are_routed(student, teacher):
    shape = (32, 32, 3)
    student = tfkd.models.create(student, 5, shape, seed=1)
    teacher = tfkd.models.create(teacher, 5, shape, seed=2)
    distiller = tfkd.SAKD(student, teacher, losses=["at"])
    distiller.compile()
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    batch = distiller.unpack((tf.constant(images), tf.zeros(3, "int32")))
    observed = distiller.observe_teacher(batch)
    one_of_each = tf.constant(np.eye(3, len(distiller.spots)), "float32")
    assert np.all(np.isfinite(distiller.route(batch, observed, one_of_each)))
    nowhere = distiller.route(batch, observed, tf.zeros((3, len(distiller.spots))))
    np.testing.assert_allclose(nowhere, student(images, training=False), rtol=1e-3, atol=1e-4)
    everywhere = distiller.route(batch, observed, tf.ones((3, len(distiller.spots))))
    np.testing.assert_allclose(everywhere, observed["logits"], rtol=1e-3, atol=1e-4)


def test_a_teacher_with_other_inputs_is_routed():
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="stage")(inputs)
    logits = layers.Dense(tiny.CLASSES)(layers.GlobalAveragePooling2D(name="mean")(x))
    calls = []

    def preprocessing(images):
        calls.append(1)
        return tf.image.resize(images[..., :1], (16, 16))

    distiller = tfkd.SAKD(
        tiny.model(seed=1),
        keras.Model(inputs, logits),
        losses=[tfkd.losses.get("at", spots=[("stage2", "stage")])],
        teacher_preprocessing=preprocessing,
    )
    distiller.compile("sgd", run_eagerly=True)
    batch, _, teacher = look(distiller)
    routed = distiller.route(batch, teacher, tf.ones((16, 2)))
    np.testing.assert_allclose(routed, teacher["logits"], rtol=1e-4, atol=1e-5)
    calls.clear()
    distiller.train_on_batch(*tiny.data(8))
    assert len(calls) == 1


# The decisions.


def test_the_routing_factor():
    assert [float(routing_factor(loss, 1.0, 4.0)) for loss in (2.0, 0.5, 1.0)] == [4.0, 0.25, 1.0]


@pytest.fixture(scope="module")
def zoo():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tfkd.models.create(name, 5, (8, 8, 3))
        return made[name]

    return get


@pytest.mark.parametrize(
    "teacher, student, expected",
    [
        ("resnet56", "resnet20", True),
        ("resnet32x4", "resnet8x4", True),
        ("vgg13", "vgg8", True),
        ("wrn_40_2", "wrn_16_2", True),
        ("vgg13", "mobilenet_v2", False),
        ("resnet50", "mobilenet_v2", False),
        ("resnet50", "vgg8", False),
        ("resnet32x4", "resnet20", False),
        ("wrn_40_2", "shufflenet_v1", False),
        # As many channels, but blocks of another kind.
        ("wrn_40_1", "resnet20", False),
        pytest.param("resnet110", "resnet32", True, marks=pytest.mark.slow),
        pytest.param("resnet110", "resnet20", True, marks=pytest.mark.slow),
        pytest.param("resnet32x4", "resnet32", False, marks=pytest.mark.slow),
    ],
)
def test_homogeneous_pairs_are_those_of_the_study(zoo, teacher, student, expected):
    assert same_architecture(zoo(student), zoo(teacher)) is expected


def test_homogeneous_pairs_start_with_distilling_everywhere():
    for homogeneous, least, most in (("auto", 0.99, 1.0), (False, 0.1, 0.9)):
        distiller = make(["at"], homogeneous=homogeneous)
        batch, student, teacher = look(distiller, 512)
        share = np.mean(distiller.decide(batch, student, teacher))
        assert least <= share <= most


def test_the_gradients_reach_what_they_train_and_no_more():
    distiller = make(["at"], homogeneous=False, routing_scale=2.0)
    batch, _, teacher = look(distiller)
    with tf.GradientTape(persistent=True) as tape:
        student = distiller.observe_student(batch)
        loss = distiller.student_loss(batch, student["logits"])
        decisions = distiller.decide(batch, student, teacher)
        routed = distiller.route(batch, teacher, decisions)
        routing = distiller.routing_objective(batch, routed, decisions, loss)
        masks = dict(zip(distiller.spots, tf.unstack(distiller.selected(decisions), axis=1)))
        terms = distiller.distillation_terms(batch, student, teacher, masks)
        objective = distiller.objective(batch, {"student_loss": (1.0, loss), **terms})
    assert tape.gradient(objective, distiller.policy_variables) == [None] * len(
        distiller.policy_variables
    )
    for gradient in tape.gradient(routing, distiller.policy_variables):
        assert np.any(gradient != 0)
    shared = {id(v) for v in distiller.policy_variables} & {
        id(v) for v in distiller.student_variables
    }
    assert not shared
    assert len(distiller.policy_variables) + len(distiller.student_variables) == len(
        distiller.trainable_variables
    )


def test_each_step_changes_its_own_variables():
    x, y = tiny.data()
    for still in ("optimizer", "policy_optimizer"):
        distiller = make(
            ["at", "fitnet"],
            optimizer=keras.optimizers.SGD(0.0 if still == "optimizer" else 0.01),
            compiled={
                "policy_optimizer": keras.optimizers.SGD(0.0 if still != "optimizer" else 0.01),
                "run_eagerly": True,
            },
        )
        before = {name: values(part) for name, (_, part) in distiller.optimizers().items()}
        teacher = values(distiller.teacher.variables)
        # One training-mode forward pass and no more moves the student's statistics.
        moved = keras.models.clone_model(distiller.student)
        moved.set_weights(distiller.student.get_weights())
        moved(x, training=True)
        distiller.train_on_batch(x, y)
        for name, (_, part) in distiller.optimizers().items():
            same = [np.array_equal(a, b) for a, b in zip(before[name], values(part))]
            assert all(same) if name == still else not all(same)
        assert_close(teacher, values(distiller.teacher.variables), 0.0)
        assert_close(
            values(distiller.student.non_trainable_variables),
            values(moved.non_trainable_variables),
        )


# The student.


def test_deciding_for_always_is_plain_distillation():
    x, y = tiny.data()
    ids = ("at", "rkd")
    plain = tfkd.KnowledgeDistiller(
        tiny.model(seed=1),
        tiny.model(name="teacher", seed=2),
        losses=[tfkd.losses.get("kd", weight=1.0), *ids],
    )
    plain.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"], run_eagerly=True)
    always = make(ids, decisions="always", routing_scale=2.0)
    for _ in range(3):
        logs = [d.train_on_batch(x, y, return_dict=True) for d in (plain, always)]
        assert {name: logs[1][name] for name in logs[0]} == pytest.approx(logs[0], rel=1e-5)
    assert_close(plain.student.get_weights(), always.student.get_weights())
    assert logs[1]["spot_stage1_share"] == logs[1]["spot_logits_share"] == 1.0


def test_random_decisions_need_no_policy():
    distiller = make(["at"], decisions="random", routing_scale=3.0)
    assert list(distiller.optimizers()) == ["optimizer"]
    batch, student, teacher = look(distiller, 512)
    drawn = [distiller.decide(batch, student, teacher).numpy() for _ in range(2)]
    assert 0.4 < drawn[0].mean() < 0.6 and np.any(drawn[0] != drawn[1])
    # Each decision is a draw of its own.
    assert 0.4 < np.mean(drawn[0][:, 0] == drawn[0][:, 1]) < 0.6
    logs = distiller.train_on_batch(*tiny.data(16), return_dict=True)
    expected = 3.0 * logs["student_loss"] + logs["distillation_loss"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert not any(name.startswith("routing") for name in logs)


def test_reversed_decisions_are_the_others():
    distiller = make(["at"], decisions="reversed")
    decisions = tf.constant([[1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(distiller.selected(decisions), [[0, 1, 0]])
    logs = distiller.train_on_batch(*tiny.data(16), return_dict=True)
    # The policy of a homogeneous pair starts with yes, and the losses see the opposite.
    assert logs["spot_logits_share"] < 0.1 and "routing_loss" in logs


def steps():
    """All losses on both pairs; on the second one most of them wait for the slow tests."""
    first, *_ = PAIRS
    for loss in (*STUDY, *FURTHER):
        for pair in PAIRS:
            fast = pair == first or loss in ("fitnet", "cc", "crd", "cat_kd", "reviewkd")
            yield pytest.param(loss, pair, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize("loss, pair", steps())
def test_every_loss_takes_a_step(loss, pair):
    images, labels = tiny.data(12)
    made = tfkd.losses.get(loss)
    made.preparation = None
    if loss == "reviewkd":
        made.weight = 1.0  # without its warm-up, which begins with 0
    if made.needs_indices:
        made.set_examples(labels)
    distiller = make([made], PAIRS[pair])
    of_stages = ("at", "nst", "vid", "ofd", "semckd")
    expected = {**dict.fromkeys(of_stages, 3), "irg": 4, "reviewkd": 4}
    assert len(distiller.spots) == expected.get(loss, 2)
    # Every second sample is distilled, so that all parts are used.
    favour = np.where(np.arange(12) % 2, 20.0, -20.0)[:, None, None] * [1.0, -1.0]
    noise = np.broadcast_to(favour, (12, len(distiller.spots), 2)).astype("float32")
    distiller.policy.noise = lambda size: tf.constant(noise)
    kernels = [v for v in distiller.trainable_variables if len(v.shape) > 1]
    before = values(kernels)
    data = tf.data.Dataset.from_tensors((images, {"label": labels, "index": np.arange(12)}))
    logs = distiller.fit(data, verbose=0).history
    assert np.isfinite(logs[f"{loss}_loss"][0]) and np.isfinite(logs["loss"][0])
    assert logs["spot_logits_share"][0] == pytest.approx(0.5)
    changed = [not np.array_equal(a, b) for a, b in zip(before, values(kernels))]
    assert all(changed), [v.path for v, c in zip(kernels, changed) if not c]


def test_losses_share_the_decisions_of_their_spots():
    distiller = make(["rkd", "fitnet", "at", "sp", "dkd"])
    spots = ["stage1", "stage2", "pooled", "logits"]
    assert distiller.spots == [(name, name) for name in spots]
    batch, student, teacher = look(distiller)
    masks = {spot: tf.zeros(16) for spot in distiller.spots}
    masks["stage2", "stage2"] = tf.ones(16)
    terms = distiller.distillation_terms(batch, student, teacher, masks)
    counted = {name for name, (_, value) in terms.items() if value > 0}
    assert counted == {"fitnet_loss", "at_loss", "sp_loss"}


def test_kd_is_part_of_the_method():
    weights = {}
    for losses in (["at"], ["kd", "at"], [tfkd.losses.get("kd", weight=0.5), "at"]):
        made = make(losses).distillation_losses
        weights[len(weights)] = [(loss.id, loss.weight) for loss in made]
    assert list(weights.values()) == [
        [("kd", 1.0), ("at", 1000.0)],
        [("kd", 1.0), ("at", 1000.0)],
        [("kd", 0.5), ("at", 1000.0)],
    ]


def test_samples_of_weight_0_take_no_part():
    images, labels = tiny.data(16)
    weights = np.array([1.0] * 8 + [0.0] * 8, "float32")
    found = []
    for other_half in (labels[8:], 4 - labels[8:]):
        distiller = make(["at", "rkd"], homogeneous=False)
        noise = np.random.default_rng(0).gumbel(size=(16, 4, 2)).astype("float32")
        distiller.policy.set_weights([np.zeros_like(w) for w in distiller.policy.get_weights()])
        if found:
            noise[8:] *= -1
        distiller.policy.noise = lambda size, noise=noise: tf.constant(noise)
        given = np.concatenate([labels[:8], other_half])
        distiller.train_on_batch(images, given, sample_weight=weights)
        found.append(values(distiller.student_variables) + [distiller.counts.numpy()])
    assert_close(*found)
    assert found[0][-1][:, -1].sum() == 8


# Everything around it.


def test_the_counts_are_of_one_epoch_and_make_the_pictures(tmp_path):
    images, labels = tiny.data(24)
    distiller = make(["at"], homogeneous=False)
    distiller.fit(images, labels, epochs=2, batch_size=8, verbose=0)
    logs = distiller.history.history
    counts = distiller.counts.numpy()
    np.testing.assert_array_equal(counts[:, -1], np.bincount(labels, minlength=tiny.CLASSES))
    for number, (spot, _) in enumerate(distiller.spots):
        share = counts[:, number].sum() / 24
        assert logs[f"spot_{spot}_share"][-1] == pytest.approx(share, rel=1e-5)
    history = [{name: logs[name][epoch] for name in logs} for epoch in range(2)]
    pictures = distiller.pictures(history)
    assert set(pictures) == {"spots.png", "spots_per_class.png"}
    for name, draw in pictures.items():
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# Wrong use.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decisions": "sometimes"}, "Unknown value of decisions .* policy, reversed"),
        ({"routing_scale": 0.5}, "routing_scale must be at least 1; received 0.5"),
        ({"homogeneous": "maybe"}, "homogeneous must be 'auto', True or False"),
        ({"gumbel_temperature": -1}, "temperature must be a number greater than 0"),
        ({"teacher": None}, "SAKD needs a teacher"),
        ({"teacher": tiny.Subclassed()}, "subclassed: SAKD routes .* Make it functional"),
        ({"student": tiny.Subclassed()}, "Student .* is subclassed"),
    ],
)
def test_wrong_arguments(arguments, message):
    models = {"student": tiny.model(seed=1), "teacher": tiny.model(seed=2)}
    with pytest.raises(UsageError, match=message):
        tfkd.SAKD(**{**models, **arguments})


@pytest.mark.parametrize(
    "spots",
    [[("stage1", "stage2"), ("stage2", "stage1")], [("stage1", "stage1"), ("stage1", "stage2")]],
)
def test_spots_without_an_order(spots):
    with pytest.raises(UsageError, match="one after the other.*stage1 - stage"):
        make([tfkd.losses.get("at", spots=spots)])
