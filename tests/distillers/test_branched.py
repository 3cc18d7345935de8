"""Students of several branches: where they are cut, what they share, and what is averaged."""

import keras
import numpy as np
import pytest
import tiny
from keras import layers
from tiny import assert_equal, values

import tfkd
from tfkd.errors import UsageError

METHODS = (tfkd.ONE, tfkd.OKDDip, tfkd.PCL)


def make(cls, student=None, rate=0.05, compile_arguments=None, **arguments):
    distiller = cls(student or tiny.model(seed=1), **{"ramp": 0, **arguments})
    given = {"run_eagerly": True, "metrics": ["accuracy"], **(compile_arguments or {})}
    distiller.compile(tfkd.optimizers.SGD(rate, momentum=0.9), **given)
    return distiller


@pytest.mark.parametrize("cls", METHODS)
def test_branches_share_the_trunk_and_have_a_rest_of_their_own(cls):
    student = tfkd.models.create("resnet8", 5, (8, 8, 3), seed=0)
    distiller = cls(student)
    assert distiller.branch_at == "stage2" and distiller.student is student
    assert len(distiller.copies) == {"okddip": 3}.get(distiller.id, 2)
    rest = tfkd.taps.segment(student, "stage2")
    trunk = student.count_params() - rest.count_params()
    ensemble = distiller.ensemble()
    branches = distiller.copies if distiller.id == "okddip" else [rest, *distiller.copies]
    # That of PCL takes the place of the student's own classifier.
    joined = {"one": 32 * 3 + 3 + 3 * 4, "okddip": 0, "pcl": 2 * 64 * 5}[distiller.id]
    assert ensemble.count_params() == trunk + len(branches) * rest.count_params() + joined
    # What it predicts by hand.
    x, _ = tiny.data(4)
    features = tfkd.taps.segment(student, None, "stage2")(x)
    ends = [tfkd.taps.extractor(student, ["pooled"])(x)]
    ends += [copy(features) for copy in distiller.copies]
    logits = np.array([end["logits"] for end in ends])
    if distiller.id == "one":
        gates = distiller.gates(features, training=False)
        expected = np.einsum("bk,kbc->bc", gates, logits)
    elif distiller.id == "okddip":
        expected = logits[1:].mean(0)
    else:
        dense = distiller.ensemble_classifier
        vectors = np.concatenate([end["pooled"] for end in ends], -1)
        expected = vectors @ np.array(dense.kernel) + np.array(dense.bias)
    np.testing.assert_allclose(ensemble(x), expected, rtol=1e-4, atol=1e-5)


def test_query_and_key_learn():
    """Nothing but the targets' own gradient reaches them."""
    distiller = make(tfkd.OKDDip, branches=3, reduction=2)
    kernels = [distiller.attention.query.kernel, distiller.attention.key.kernel]
    before = values(kernels)
    logs = distiller.train_on_batch(*tiny.data(8), return_dict=True)
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(before, values(kernels)))
    assert 0 < logs["own_attention"] < 1


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_averages_follow_the_weights_by_hand(accumulation_steps):
    distiller = make(
        tfkd.PCL,
        branches=2,
        decay=0.6,
        compile_arguments={"accumulation_steps": accumulation_steps},
    )
    student, copy = distiller.student, distiller.copies[0]
    averages = distiller.averages
    assert_equal(values(averages[1].trainable_variables), [])
    expected, x, y = None, *tiny.data(8)
    for step in range(4):
        for _ in range(accumulation_steps):
            distiller.train_on_batch(x, y)
        now = [*values(student.trainable_variables), *values(copy.trainable_variables)]
        # 0 at first, then 1/2, and 0.6 where the mean so far would keep more.
        kept = min(step / (step + 1), 0.6)
        expected = now if step == 0 else [kept * a + (1 - kept) * b for a, b in zip(expected, now)]
        followed = [variable for variable, _ in distiller._followed.pairs]
        for a, b in zip(values(followed), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Batch normalization has statistics of its own, from passes in training mode.
    means = [
        [variable for variable in model.variables if "moving_mean" in variable.path]
        for model in (averages[0], student)
    ]
    apart = [np.abs(a - b).max() for a, b in zip(*map(values, means), strict=True)]
    assert min(apart) > 0 and max(apart) < 0.5
    plain = distiller.averaged()
    assert plain.count_params() == student.count_params()
    np.testing.assert_allclose(plain(x), averages[0](x)["logits"], rtol=1e-5)


def test_the_weight_grows_with_the_epoch():
    x, y = tiny.data(8)
    distiller = make(tfkd.ONE, rate=0.0, distillation_weight=0.8, ramp=2, branches=2)
    logs = distiller.fit(x, y, batch_size=8, epochs=3, verbose=0).history
    labels = ("student_loss", "branches_loss", "ensemble_loss")
    for epoch, share in enumerate([np.exp(-5), np.exp(-5 / 4), 1.0]):
        hard = sum(logs[name][epoch] for name in labels)
        expected = hard + 0.8 * share * logs["kd_loss"][epoch]
        assert logs["loss"][epoch] == pytest.approx(expected, rel=1e-5)
    gates = logs["student_gate"][0] + logs["branch2_gate"][0]
    assert gates == pytest.approx(1, rel=1e-5)
    assert logs["student_loss"][0] != pytest.approx(logs["branches_loss"][0], rel=1e-3)


def test_regularizers_of_all_branches_count_and_none_of_their_averages():
    losses = []
    for regularizer in (None, keras.regularizers.L2(0.01)):
        keras.utils.set_random_seed(0)
        student = tiny.model(seed=1, regularizer=regularizer)
        distiller = make(tfkd.PCL, student, rate=0.0)
        losses.append(distiller.train_on_batch(*tiny.data(8), return_dict=True)["loss"])
    kernels = [
        variable
        for variable in distiller.trainable_variables
        if len(variable.shape) == 4 and variable.regularizer is not None
    ]
    # Trunk: stem, and both paths of the first stage. Each branch: both of the second.
    assert len(kernels) == 3 + 2 * (len(distiller.copies) + 1)
    penalty = 0.01 * sum(np.sum(np.square(kernel)) for kernel in kernels)
    assert losses[1] - losses[0] == pytest.approx(penalty, rel=1e-4)


def nested():
    inputs = keras.Input(tiny.SHAPE)
    backbone = tiny.model(name="backbone")
    features = keras.Model(backbone.input, backbone.get_layer("stage2").output, name="backbone")
    x = layers.GlobalAveragePooling2D()(features(inputs))
    return keras.Model(inputs, layers.Dense(tiny.CLASSES)(x), name="whole")


def test_models_within_a_model_can_be_cut():
    distiller = make(tfkd.PCL, nested(), branches=2)
    assert distiller.branch_at == "backbone/stage1"
    x, y = tiny.data(8)
    distiller.train_on_batch(x, y)
    # The first step copies the weights, batch-norm statistics apart.
    pairs = distiller._followed.pairs
    assert len(pairs) == len(distiller.student.trainable_variables) + len(
        distiller.copies[0].trainable_variables
    )
    assert_equal(values([a for a, _ in pairs]), values([b for _, b in pairs]))


def flat():
    """A student of one stage."""
    inputs = keras.Input(tiny.SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="only")(inputs))
    return keras.Model(inputs, layers.Dense(tiny.CLASSES)(x), name="flat")


def without_pooling():
    inputs = keras.Input(tiny.SHAPE)
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.Conv2D(5, 6, name="last")(x)
    return keras.Model(inputs, layers.Reshape((5,))(x), name="unpooled")


MISTAKES = {
    "teacher": (tfkd.ONE, {"teacher": tiny.model(seed=2)}, "ONE takes no teacher"),
    "one branch": (tfkd.ONE, {"branches": 1}, "branches must be a whole number of at least 2"),
    "two branches": (tfkd.OKDDip, {"branches": 2}, "a whole number of at least 3; received 2"),
    "a fraction": (tfkd.PCL, {"branches": 2.5}, "branches must be a whole number"),
    "no tap": (tfkd.ONE, {"branch_at": "stage7"}, "no tap 'stage7'; it has stem"),
    "no bottleneck": (tfkd.ONE, {"branch_at": "conv2d"}, "no tap 'conv2d'|cannot be cut from"),
    "no rest": (tfkd.PCL, {"branch_at": "pooled"}, "leaves the branches no pooled vector 'pooled'"),
    "ramp": (tfkd.ONE, {"ramp": -1}, "ramp must be a number of at least 0"),
    "weight": (tfkd.ONE, {"distillation_weight": -1.0}, "distillation_weight must be a number of"),
    "temperature": (tfkd.PCL, {"temperature": 0.0}, "temperature must be a number greater than 0"),
    "reduction": (tfkd.OKDDip, {"reduction": 0}, "reduction must be a number greater than 0"),
    "decay": (tfkd.PCL, {"decay": 1.5}, "decay must be a number between 0 and 1"),
    "subclassed": (tfkd.ONE, {"student": tiny.Subclassed()}, "is subclassed"),
    "one stage": (tfkd.ONE, {"student": flat()}, r"has one stage \(only\).*branch_at=\.\.\."),
    "no vector": (
        tfkd.PCL,
        {"student": without_pooling(), "branch_at": "first"},
        "no place that would serve as 'pooled'",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_one_line(mistake):
    cls, arguments, message = MISTAKES[mistake]
    arguments = {"student": tiny.model(seed=1), **arguments}
    with pytest.raises(UsageError, match=message) as error:
        cls(**arguments)
    assert "\n" not in str(error.value)
