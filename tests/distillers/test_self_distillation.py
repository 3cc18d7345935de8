"""byot, dks and tofd: auxiliary learners on the plain student."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from scipy.special import log_softmax, softmax

import tfkd
from tfkd.distillers.learners_distiller import pooled
from tfkd.distillers.tofd import frobenius, orthogonality
from tfkd.errors import UsageError


def make(kind, **arguments):
    """A compiled distiller whose steps change nothing, with the models that the test looks at."""
    keras.utils.set_random_seed(0)
    student = tiny.model(seed=1)
    models = [student, tiny.model(6, "teacher", seed=2)] if kind is tfkd.TOFD else [student]
    distiller = kind(*models, **arguments)
    distiller.compile(tfkd.optimizers.SGD(0.0), metrics=["accuracy"], run_eagerly=True)
    return distiller


def observed(distiller, x):
    """What student and learners compute in training mode: `{learner: array}` of both kinds."""
    batch = distiller.unpack((keras.ops.convert_to_tensor(x), np.zeros(len(x))))
    maps, logits = distiller.run_learners(distiller.observe_student(batch), training=True)
    return (
        {name: np.array(value, "float64") for name, value in found.items()}
        for found in (pooled(maps), logits)
    )


def cross_entropy(logits, labels):
    return -np.mean(log_softmax(logits, -1)[np.arange(len(labels)), labels])


def divergence(student, teacher, temperature=1.0):
    logs = log_softmax(teacher / temperature, -1) - log_softmax(student / temperature, -1)
    return np.mean(np.sum(softmax(teacher / temperature, -1) * logs, -1))


def test_byot_is_its_equation():
    distiller = make(tfkd.BYOT, alpha=0.3, temperature=2.0, feature_weight=0.5)
    x, y = tiny.data(8)
    vectors, logits = observed(distiller, x)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert list(logits) == ["auxiliary1", "main"]
    below, end = (vectors[name] for name in logits)
    # Of pooled maps after a ReLU, which are active unless dead; golden numbers have others.
    active = (below > 0) | (end > 0)
    expected = {
        "student_loss": cross_entropy(logits["main"], y),
        "learners_loss": cross_entropy(logits["auxiliary1"], y),
        "self_distillation_loss": 4 * divergence(logits["auxiliary1"], logits["main"], 2.0),
        "feature_loss": np.mean(np.sum(active * (below - end) ** 2, -1)),
    }
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    weights = (0.7, 0.7, 0.3, 0.5)
    total = sum(weight * value for weight, value in zip(weights, expected.values()))
    assert logs["loss"] == pytest.approx(total, rel=1e-4)


def test_the_end_of_byot_is_not_taught():
    """With the labels out of the way nothing reaches the student's classifier."""
    distiller = make(tfkd.BYOT, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    student = distiller.student
    before = {variable.path: np.array(variable) for variable in student.trainable_variables}
    distiller.train_on_batch(*tiny.data(8))
    moved = {
        variable.path
        for variable in student.trainable_variables
        if not np.array_equal(before[variable.path], variable)
    }
    assert moved
    assert not {path for path in moved if path.startswith(("logits", "stage2"))}


def test_every_learner_of_dks_learns_from_every_other():
    distiller = make(
        tfkd.DKS, synergy_weight=0.5, temperature=2.0, stages=["stem", "stage1", "stage2"]
    )
    x, y = tiny.data(8)
    _, logits = observed(distiller, x)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert list(logits) == ["auxiliary1", "auxiliary2", "main"]
    everyone = list(logits.values())
    synergy = sum(
        4 * divergence(own, other, 2.0)
        for own in everyone
        for other in everyone
        if own is not other
    )
    own = [cross_entropy(tensor, y) for tensor in everyone]
    assert logs["synergy_loss"] == pytest.approx(synergy, rel=1e-4)
    assert logs["student_loss"] == pytest.approx(own[-1], rel=1e-4)
    assert logs["learners_loss"] == pytest.approx(own[0] + own[1], rel=1e-4)
    assert logs["loss"] == pytest.approx(sum(own) + 0.5 * synergy, rel=1e-4)


def test_tofd_is_its_equation():
    distiller = make(tfkd.TOFD, feature_weight=0.2, orthogonal_weight=0.1, temperature=3.0)
    x, y = tiny.data(8)
    vectors, logits = observed(distiller, x)
    batch = distiller.unpack((keras.ops.convert_to_tensor(x), y))
    maps, targets = distiller.run_teacher_learners(distiller.observe_teacher(batch))
    theirs = pooled(maps)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    features = soft = orthogonal = 0
    for name in ("auxiliary1", "main"):
        kernel = np.array(distiller.links[name].kernel, "float64")
        assert kernel.shape == (8, 12)
        features += np.linalg.norm(vectors[name] @ kernel - theirs[name])
        soft += divergence(logits[name], np.array(targets[name], "float64"), 3.0)
        for product in (kernel @ kernel.T, kernel.T @ kernel):
            orthogonal += np.linalg.norm(product - np.eye(len(product)))
    expected = {"kd_loss": soft, "feature_loss": features, "orthogonal_loss": orthogonal}
    assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    own = sum(cross_entropy(tensor, y) for tensor in logits.values())
    total = own + soft + 0.2 * features + 0.1 * orthogonal
    assert logs["loss"] == pytest.approx(total, rel=1e-4)


def test_no_gradient_where_nothing_differs():
    zeros = keras.Variable(np.zeros((3, 4), "float32"))
    with tf.GradientTape() as tape:
        value = frobenius(zeros.value) + orthogonality(keras.ops.eye(4) + zeros.value[:1, :1])
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, zeros.value)).all()
    assert float(frobenius(zeros.value)) == 0


def test_the_temperature_of_tofd_grows_over_the_run():
    distiller = make(tfkd.TOFD, temperature=4.0)
    distiller.start_training(3, 10)
    found = []
    for epoch in range(4):
        distiller.start_epoch(epoch)
        found.append(float(distiller.current_temperature))
    assert found == pytest.approx([2.0, 3.0, 4.0, 4.0])


def test_the_learners_of_the_teacher_are_trained_once_and_before():
    distiller = make(tfkd.TOFD)
    x, y = tiny.data(32)
    teacher = tiny.values(distiller.teacher.variables)
    student = tiny.values(distiller.student.variables)
    learners = distiller.teacher_learners

    def loss():
        batch = distiller.unpack((keras.ops.convert_to_tensor(x), y))
        _, logits = distiller.run_teacher_learners(distiller.observe_teacher(batch))
        return cross_entropy(np.array(logits["auxiliary1"]), y)

    before = loss()
    distiller.prepare(x, y, epochs=15, verbose=0)
    assert loss() < 0.9 * before
    tiny.assert_equal(tiny.values(distiller.teacher.variables), teacher)
    tiny.assert_equal(tiny.values(distiller.student.variables), student)
    assert learners.trainable_variables == [] and distiller.preparations() == []
    # What is prepared stays as it is.
    state = tiny.values(learners.variables)
    distiller.fit(x, y, verbose=0)
    tiny.assert_equal(tiny.values(learners.variables), state)


def test_early_exits_are_models_by_themselves(tmp_path):
    student = tfkd.models.create("resnet8", tiny.CLASSES, (8, 8, 3))
    distiller = tfkd.BYOT(student)
    distiller.compile("sgd", run_eagerly=True)
    exits = distiller.learners()
    assert list(exits) == ["auxiliary1", "auxiliary2"]
    sizes = [tfkd.models.multiply_adds(model) for model in (*exits.values(), distiller.student)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    # Nothing of the stages that follow.
    names = {layer.name for layer in exits["auxiliary1"].layers}
    assert "stage1" in names and not [name for name in names if name.startswith("stage3")]
    x, _ = tiny.data(4)
    logits = distiller.all_logits(keras.ops.convert_to_tensor(x), training=False)
    for name, model in exits.items():
        np.testing.assert_allclose(model(x), logits[name], rtol=1e-4, atol=1e-5)
    assert distiller.early_exit("auxiliary1") is exits["auxiliary1"]
    with pytest.raises(UsageError, match="Unknown auxiliary learner 'exit1'.*auxiliary1"):
        distiller.early_exit("exit1")


def test_a_subclassed_student_has_no_early_exits():
    class Two(tiny.Subclassed):
        def __init__(self):
            super().__init__()
            self.deeper = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")

        def call(self, inputs):
            return self.head(self.pool(self.deeper(self.body(inputs))))

    student = Two()
    x, y = tiny.data(8)
    student(x[:1])
    distiller = tfkd.DKS(student, stages=["body", "deeper"])
    distiller.compile("sgd", run_eagerly=True)
    assert np.isfinite(distiller.train_on_batch(x, y, return_dict=True)["loss"])
    assert distiller.learners() == {}
    with pytest.raises(UsageError, match="is subclassed, so it cannot be joined"):
        distiller.early_exit("auxiliary1")


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (tfkd.BYOT, {"teacher": tiny.model()}, "BYOT takes no teacher"),
        (tfkd.DKS, {"teacher": tiny.model()}, "DKS takes no teacher"),
        (tfkd.BYOT, {"alpha": 1.5}, "alpha must be a number between 0 and 1"),
        (tfkd.BYOT, {"feature_weight": -1.0}, "feature_weight must be a number of at least 0"),
        (tfkd.BYOT, {"temperature": 0.0}, "temperature must be a number greater than 0"),
        (tfkd.BYOT, {"auxiliary_learners": 0}, r"must be -1 \(all\) or 1 to 1.*received 0"),
        (tfkd.BYOT, {"auxiliary_design": "wide"}, "must be one of separable, bottleneck"),
        (tfkd.DKS, {"stages": ["stage2"]}, "has one stage"),
        (tfkd.DKS, {"synergy_weight": -1.0}, "synergy_weight must be a number of at least 0"),
        (tfkd.TOFD, {"temperature": -1.0}, "temperature must be a number greater than 0"),
        (tfkd.TOFD, {"orthogonal_weight": -1.0}, "orthogonal_weight must be a number of at"),
        (tfkd.TOFD, {"teacher_stages": ["stage2"]}, "the student has 2 .*, the teacher 1"),
        (tfkd.TOFD, {"teacher_stages": ["stage9", "stage2"]}, "no tap 'stage9'"),
        (tfkd.TOFD, {"teacher_stages": "stage2"}, "teacher_stages must be a list of taps of the t"),
    ],
)
def test_mistakes(kind, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(kind, **arguments)
