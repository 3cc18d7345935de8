import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import EAGER, values

import tfkd
from tfkd.errors import UsageError
from tfkd.losses import kl_divergence

OPTIONS = {
    "default": {},
    "logit": {"attention": "logit"},
    "uniform": {"attention": "uniform"},
    "ensemble": {"adversarial_target": "ensemble", "auxiliary_weight": 0.25},
    "bottleneck": {"auxiliary_design": "bottleneck"},
    "no adversary": {"adversarial_weight": 0.0},
}


def make(rate=0.1, discriminator_rate=0.01, seed=1, student=None, compile_arguments=EAGER, **kw):
    student = student or tiny.model(seed=seed)
    # With a ramp the adversary would have no say in the first epoch.
    kw = {"adversarial_ramp": 0, **kw}
    distiller = tfkd.ACKD(student, tiny.model(8, name="teacher", seed=2), **kw)
    distiller.compile(
        keras.optimizers.SGD(rate),
        metrics=["accuracy"],
        discriminator_optimizer=keras.optimizers.Adam(discriminator_rate),
        **compile_arguments,
    )
    return distiller


def changed(before, variables):
    return [not np.array_equal(a, v.numpy()) for a, v in zip(before, variables, strict=True)]


def observed(distiller, x):
    """What all networks compute in training mode: student, learners and teacher."""
    batch = distiller.unpack((tf.constant(x), tf.zeros(len(x))))
    student = distiller.observe_student(batch)
    return *distiller.collaborate(student, training=True), distiller.observe_teacher(batch)


@pytest.mark.parametrize("option", ["default", "logit", "ensemble"])
def test_losses_are_those_of_the_equations(option):
    distiller = make(rate=0.0, discriminator_rate=0.0, temperature=3.0, **OPTIONS[option])
    x, y = tiny.data(16)
    vectors, logits, targets, teacher = observed(distiller, x)
    logs = distiller.train_on_batch(x, y, return_dict=True)

    def cross_entropy(z):
        return np.mean(keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True))

    def kd(z, target):
        return 9 * np.mean(kl_divergence(z, target, 3.0))

    def softplus(z):
        return np.mean(np.logaddexp(0, z))

    assert list(logits) == ["auxiliary1", "main", "fused"]
    others = [cross_entropy(logits[name]) for name in ("auxiliary1", "fused")]
    share = OPTIONS[option].get("auxiliary_weight", 1.0)
    shares = {name: 1.0 if name == "main" else share for name in logits}
    if option == "ensemble":
        real, fakes = vectors["fused"], [vectors["auxiliary1"], vectors["main"]]
    else:
        real = teacher["pooled"]
        fakes = [distiller.projections[name](vector) for name, vector in vectors.items()]
    fakes = [distiller.discriminator(fake) for fake in fakes]
    expected = {
        "student_loss": cross_entropy(logits["main"]),
        "learners_loss": sum(others),
        "kd_loss": sum(shares[name] * kd(z, teacher["logits"]) for name, z in logits.items()),
        "collaboration_loss": sum(kd(logits[name], targets[name]) for name in targets),
        "adversarial_loss": np.mean([softplus(-fake) for fake in fakes]),
        "discriminator_loss": softplus(-distiller.discriminator(real))
        + np.mean([softplus(fake) for fake in fakes]),
    }
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    weights = {"learners_loss": share, "adversarial_loss": 0.1, "discriminator_loss": 0.0}
    total = sum(weights.get(name, 1.0) * value for name, value in expected.items())
    assert logs["loss"] == pytest.approx(total, rel=1e-4)
    assert logs["fused_accuracy"] == np.mean(np.argmax(logits["fused"], -1) == y)
    shares = [logs[f"{name}_attention"] for name in ("auxiliary1", "main")]
    assert sum(shares) == pytest.approx(1.0)
    # At the start the discriminator cannot tell.
    assert logs["discriminator_loss"] == pytest.approx(2 * np.log(2), rel=0.1)


def test_learners_learn_from_the_fused_one_or_from_a_mixture_of_their_own():
    x, _ = tiny.data(8)
    _, logits, targets, _ = observed(make(), x)
    for target in targets.values():
        np.testing.assert_array_equal(target, logits["fused"])
    distiller = make(attention="logit")
    _, logits, targets, _ = observed(distiller, x)
    fused = np.mean(list(targets.values()), axis=0)
    np.testing.assert_allclose(logits["fused"], fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["default", pytest.param("ensemble", marks=pytest.mark.slow)])
def test_each_optimizer_moves_its_own_networks_only(option):
    x, y = tiny.data(16)
    for rates in ((0.0, 0.1), (0.1, 0.0)):
        distiller = make(*rates, **OPTIONS[option])
        (_, own), (_, adversary) = distiller.optimizers().values()
        assert not {id(v) for v in own} & {id(v) for v in adversary}
        assert len(own) + len(adversary) == len(distiller.trainable_variables)
        before = values(own), values(adversary)
        distiller.train_on_batch(x, y)
        moved = any(changed(before[0], own)), any(changed(before[1], adversary))
        assert moved == tuple(rate > 0 for rate in rates)


@pytest.mark.slow
@pytest.mark.parametrize("eagerly", [False, True])
def test_the_student_sees_the_discriminator_as_it_was_before_its_step(eagerly):
    x, y = tiny.data(16)
    students = []
    for rate in (0.0, 10.0):
        keras.utils.set_random_seed(0)
        distiller = make(0.1, rate, compile_arguments={"run_eagerly": eagerly})
        distiller.train_on_batch(x, y)
        students.append(values(distiller.optimizers()["optimizer"][1]))
    for a, b in zip(*students, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "option",
    [
        "default",
        pytest.param("logit", marks=pytest.mark.slow),
        pytest.param("uniform", marks=pytest.mark.slow),
        "ensemble",
    ],
)
def test_what_each_part_of_the_student_learns(option):
    """All of it has a gradient, but for the logits' attention where nothing fuses maps."""
    distiller = make(**OPTIONS[option])
    x, y = tiny.data(16)
    _, own = distiller.optimizers()["optimizer"]
    before = values(own)
    distiller.train_on_batch(x, y)
    still = [v.path for v, moved in zip(own, changed(before, own)) if not moved]
    # The auxiliary learner ends in a ReLU, which can be dead; nothing else may stand still.
    assert not [path for path in still if "auxiliary" not in path]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_without_auxiliary_learners_it_is_kd_step_for_step(weight):
    x, y = tiny.data(32)
    sample_weight = np.linspace(0, 1, 32)
    loss = tfkd.losses.KnowledgeDistillation(temperature=4.0, weight=weight)
    plain = tfkd.KnowledgeDistiller(
        tiny.model(seed=1), tiny.model(8, seed=2), losses=[loss], student_loss_weight=1.0
    )
    plain.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], **EAGER)
    distiller = make(auxiliary_learners=0, kd_weight=weight)
    for _ in range(3):
        expected = plain.train_on_batch(x, y, sample_weight, return_dict=True)
        found = distiller.train_on_batch(x, y, sample_weight, return_dict=True)
        common = expected.keys() & found.keys()
        assert {"loss", "accuracy"} <= common
        assert {name: found[name] for name in common} == {name: expected[name] for name in common}
    for a, b in zip(plain.student.variables, distiller.student.variables):
        np.testing.assert_array_equal(a, b)
    assert distiller.learners() == {}


@pytest.mark.parametrize(
    "option", ["default", "logit", pytest.param("bottleneck", marks=pytest.mark.slow)]
)
def test_the_fused_student_is_an_ordinary_model(option, tmp_path):
    distiller = make(**OPTIONS[option])
    x, y = tiny.data()
    logs = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    fused = distiller.learners()["fused"]
    assert fused is distiller.fused_student()
    expected = fused.predict(x, verbose=0)
    assert logs["val_fused_accuracy"][0] == pytest.approx(np.mean(expected.argmax(-1) == y))
    learner = distiller.auxiliary["auxiliary1"]
    parameters = sum(part.count_params() for part in (distiller.student, learner, distiller.fusion))
    if option != "logit":
        # Where maps are fused, the classifiers of the single learners have no part in it.
        parameters += distiller.fused_classifier.count_params()
        parameters -= distiller.student.get_layer("logits").count_params()
        parameters -= learner.classifier.count_params()
    assert fused.count_params() == parameters
    fused.save(tmp_path / "fused.keras")
    found = keras.models.load_model(tmp_path / "fused.keras").predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_weight_of_the_adversary_grows():
    distiller = make(rate=0.0, discriminator_rate=0.0, adversarial_ramp=2)
    x, y = tiny.data()
    logs = distiller.fit(x, y, epochs=3, batch_size=32, verbose=0).history
    parts = zip(*(logs[k] for k in ("kd_loss", "learners_loss", "collaboration_loss")))
    others = [sum(part) for part in parts]
    shares = [
        (total - rest) / adversarial
        for total, rest, adversarial in zip(
            logs["distillation_loss"], others, logs["adversarial_loss"]
        )
    ]
    assert shares == pytest.approx([0.0, 0.05, 0.1], abs=1e-4)


@pytest.mark.parametrize(
    "student",
    [
        "wrn_16_1",
        "mobilenet_v2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet8", "vgg8", "shufflenet_v1")
        ),
    ],
)
def test_zoo_students(student):
    student = tfkd.models.create(student, num_classes=tiny.CLASSES, input_shape=(16, 16, 3))
    teacher = tfkd.models.create("resnet8", num_classes=tiny.CLASSES, input_shape=(16, 16, 3))
    distiller = tfkd.ACKD(student, teacher)
    distiller.compile()
    stages = [name for name in tfkd.taps.of(student) if name.startswith("stage")]
    assert list(distiller.auxiliary) == [f"auxiliary{n + 1}" for n in range(len(stages) - 1)]
    fused = distiller.fused_student()
    assert fused.output_shape == (None, tiny.CLASSES)
    assert tfkd.models.multiply_adds(fused) > 0


def test_a_subclassed_student_names_its_taps():
    class Two(tiny.Subclassed):
        def __init__(self):
            super().__init__()
            self.deeper = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")

        def call(self, inputs):
            return self.head(self.pool(self.deeper(self.body(inputs))))

    student = Two()
    x, y = tiny.data()
    student(x[:1])
    distiller = make(student=student, stages=["body", "deeper"])
    logs = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert np.isfinite(logs["loss"][0]) and "val_fused_accuracy" in logs
    with pytest.raises(UsageError, match="is subclassed, so it cannot be joined"):
        distiller.fused_student()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attention": "spatial"}, "Unknown attention 'spatial'.*channel, logit, uniform"),
        ({"adversarial_target": "labels"}, "must be one of teacher, ensemble"),
        ({"auxiliary_design": "dense"}, "must be one of separable, bottleneck"),
        ({"auxiliary_learners": 2}, r"must be -1 \(all\) or 0 to 1.*received 2"),
        ({"auxiliary_learners": -2}, "received -2"),
        ({"auxiliary_learners": 1.0}, "received 1.0"),
        ({"adversarial_ramp": -3}, "adversarial_ramp must be a number of at least 0"),
        ({"stages": "stage1"}, "stages must be a list of taps.*received 'stage1'"),
        ({"stages": ["stage2", "stage1"]}, "in the order in which the student computes them"),
        ({"stages": ["stage2", "stage2"]}, "must be different taps"),
        ({"stages": ["stage1", "pooled"]}, "stages must be maps .*'pooled' has shape"),
        ({"adversarial_weight": -1.0}, "adversarial_weight must be a number of at least 0"),
        ({"kd_weight": -1.0}, "kd_weight must be a number of at least 0"),
        ({"collaboration_weight": -1.0}, "collaboration_weight must be a number of at least 0"),
        ({"temperature": 0}, "temperature must be a number greater than 0"),
        ({"stages": ["stage2"]}, "has one stage .*name at least two taps"),
        ({"stages": ["stage1", "stage7"]}, "no tap 'stage7'; it has stem, stage1"),
        ({"teacher_features": "body"}, "no tap 'body'"),
    ],
)
def test_wrong_use(arguments, message):
    with pytest.raises(UsageError, match=message):
        make(**arguments)


def test_check_names_the_teachers_loss():
    distiller = make(kd_weight=0.5)
    report = distiller.check([tiny.data(16)])
    assert report.losses["kd_loss"]["weight"] == 0.5
    assert report.losses["kd_loss"]["spots"] == [("logits", (5,), "logits", (5,))]


def test_wrong_optimizers():
    distiller, optimizer = make(), keras.optimizers.Adam(0.1)
    with pytest.raises(UsageError, match="optimizer and discriminator_optimizer must be different"):
        distiller.compile(optimizer, discriminator_optimizer=optimizer)
    with pytest.raises(UsageError, match="discriminator_optimizer must be a Keras optimizer, its"):
        distiller.compile("sgd", discriminator_optimizer="adm")
    with pytest.raises(UsageError, match="ACKD.compile 'policy_optimizer': it must be one of disc"):
        distiller.compile("sgd", policy_optimizer="adam")


def test_no_fused_student_without_learners():
    with pytest.raises(UsageError, match="no fused student without auxiliary learners"):
        make(auxiliary_learners=0).fused_student()
