"""Every case of the further methods' golden numbers, eager and compiled by XLA.

To add an id, write a function that makes a `Setup` from a `Case`, and name it in `MAKERS`.
"""

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import golden_numbers
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd import losses, taps
from tfkd.distillers.byot import ActiveFeatures
from tfkd.distillers.dafl import imbalance, uncertainty
from tfkd.distillers.teacher_free import virtual_teacher
from tfkd.distillers.tofd import FrobeniusDistance, orthogonality
from tfkd.losses.confidence_weighted_features import confidence_weighted_distances
from tfkd.losses.confidence_weighted_teachers import confidences
from tfkd.losses.instance_relationship_graph import edge_distance, transformation_distance
from tfkd.losses.multi_level_logit_distillation import correlation_differences
from tfkd.losses.numerics import selection
from tfkd.training.batch import Batch

FILE = "methods.npz"


class Case:
    """One case: its arrays, and what its name says."""

    def __init__(self, name, arrays):
        self.id, self.name = name.split("/")
        self.arrays = arrays
        words = self.name.split("_")
        found = [re.fullmatch(r"([A-Za-z]+)(-?\d+(?:\.\d+)?(?:e-?\d+)?)", word) for word in words]
        #: What follows a letter or a word: `{"T": 4.0}` of `T4`.
        self.arguments = {match[1]: float(match[2]) for match in found if match}

    def under(self, path):
        """Returns `{rest of the key: array}` of the keys below `path`."""
        return {
            key.removeprefix(f"{path}/"): array
            for key, array in self.arrays.items()
            if key.startswith(f"{path}/")
        }

    def series(self, path):
        """Returns the arrays `path/0`, `path/1`, ... in their order."""
        found = self.under(path)
        return [found[str(index)] for index in range(len(found))]


class Setup(NamedTuple):
    """What runs a case."""

    #: `(inputs, mask) -> {name: tensor}`: takes `{name: tensor}` as under `input/`, without the
    #: mask, and returns `"loss"` and whatever else of `value/` the implementation shows.
    values: Callable
    #: `{name under param/: variable}`; the case's values are assigned to them.
    params: dict = {}


CASES = {}
if golden_numbers.files(FILE):
    found = golden_numbers.cases(FILE, depth=2)
    CASES = {name: Case(name, arrays) for name, arrays in found.items()}


def of_logits(loss):
    """Returns the setup of a loss of logits without trainable parts."""

    def values(inputs, mask):
        taps = [inputs["student"]], [inputs["teacher"]]
        return {"loss": loss(*taps, labels=inputs.get("labels"), sample_mask=mask)}

    return Setup(values)


def standardized(case):
    given = {"temperature": case.arguments["T"], "standardize": "off" not in case.name.split("_")}
    if case.id == "ls_kd":
        return of_logits(losses.get("kd", **given))
    alpha, beta = case.arguments["a"], case.arguments["b"]
    return of_logits(losses.get("dkd", alpha=alpha, beta=beta, **given))


def curriculum(case):
    if case.name == "schedule":
        return reversals(case)
    temperature = tfkd.schedules.CurriculumTemperature()
    loss = losses.get("kd", temperature=temperature)
    # The epoch at which the reversal is as far as the case says.
    share = np.arccos(1 + 2 * case.arguments["lambda"]) / np.pi
    loss.start_epoch(share * temperature.reversal.epochs - 1)
    setup = of_logits(loss)

    def values(inputs, mask):
        return {**setup.values(inputs, mask), "temperature": loss.value_of(loss.temperature)}

    return Setup(values, {"temperature": temperature.parameter})


def reversals(case):
    """The factors of the gradient after some epochs."""
    made = {}
    for key in case.under("value"):
        if match := re.fullmatch(r"cosine_0_-1_over_(\d+)", key):
            made[key] = tfkd.schedules.CurriculumTemperature(epochs=int(match[1])).reversal
    epochs = {key: range(len(case.arrays[f"value/{key}"])) for key in made}
    return Setup(
        lambda inputs, mask: {
            key: tf.stack([made[key](epoch) for epoch in epochs[key]]) for key in made
        }
    )


def dist(case):
    given = case.arguments
    loss = losses.get(
        "dist", beta=given.get("b", 1.0), gamma=given.get("g", 1.0), temperature=given["tau"]
    )
    return of_logits(loss)


def normalized(case):
    loss = losses.get("nkd", gamma=case.arguments["g"], temperature=case.arguments["T"])
    return of_logits(loss)


def soft_labels(case):
    """The published alpha is the weight, which the distiller applies."""
    setup = of_logits(losses.get("wsld", temperature=case.arguments["T"]))
    return Setup(lambda *given: {"loss": case.arguments["a"] * setup.values(*given)["loss"]})


def transformed(case):
    return of_logits(losses.get(case.id, power=case.arguments["g"]))


def multi_level(case):
    if case.name != "step":
        return Setup(lambda inputs, mask: {"loss": correlations(case, inputs, mask)})
    loss = losses.get("mlkd")
    divergences = {T: losses.get("kd", temperature=T) for T in (2.0, 3.0, 4.0, 5.0, 6.0)}

    def values(inputs, mask):
        weak, strong = (
            ([inputs[f"student_{view}"]], [inputs[f"teacher_{view}"]])
            for view in ("weak", "strong")
        )
        return {
            "loss": 0.1
            * sum(cross_entropy(inputs["labels"], view[0][0]) for view in (weak, strong))
            + 0.9 * loss(*weak)
            + 0.9 * sum(divergences[T](*strong) for T in (3.0, 4.0, 5.0))
            + 0.9 * sum(divergences[T](*weak) for T in (2.0, 6.0))
        }

    return Setup(values)


def correlations(case, inputs, mask):
    selected = selection(mask, inputs["student"])
    found = correlation_differences(
        inputs["student"], inputs["teacher"], case.arguments["T"], selected
    )
    by_class, by_sample = map(tf.reduce_mean, found)
    by_kind = {"class": by_class * tf.reduce_mean(selected), "batch": by_sample}
    return by_kind[case.name.split("_")[0]]


def of_labels_and(divergence, case):
    """The setup of a whole objective of labels and a divergence `(inputs, mask) -> scalar`.

    The published divergence is a mean over the classes, too, ours a sum over them.
    """
    alpha, multiplier = case.arguments["a"], case.arguments["m"]

    def values(inputs, mask):
        classes = inputs["student"].shape[-1]
        of_labels = cross_entropy(inputs["labels"], inputs["student"], mask)
        further = multiplier / classes * divergence(inputs, mask)
        return {"loss": (1 - alpha) * of_labels + alpha * further}

    return Setup(values)


def virtual(case):
    def divergence(inputs, mask):
        student = inputs["student"]
        teacher = virtual_teacher(inputs["labels"], student.shape[-1]) / case.arguments["T"]
        return losses.get("kd", temperature=1.0)([student], [teacher], sample_mask=mask)

    return of_labels_and(divergence, case)


def own_teacher(case):
    kd = of_logits(losses.get("kd", temperature=case.arguments["T"]))
    return of_labels_and(lambda *given: kd.values(*given)["loss"], case)


def cross_entropy(labels, logits, mask=None):
    values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return losses.masked_mean(values, mask)


def irg(case):
    def of_sides(inputs):
        names = ("map/0", "map/1", "pooled", "logits")
        return ([inputs[f"{side}/{name}"] for name in names] for side in ("student", "teacher"))

    def edge(inputs, mask):
        distances = [edge_distance(*pair, mask) for pair in list(zip(*of_sides(inputs)))[:3]]
        return {"loss": sum(distances) / 3}

    def transform(inputs, mask):
        student, teacher = of_sides(inputs)
        return {"loss": transformation_distance(student[:2], teacher[:2], mask)}

    def everything(inputs, mask):
        given = case.arguments
        loss = losses.get(
            "irg",
            vertex_weight=given["v"],
            edge_weight=given["e"],
            transformation_weight=given["t"],
        )
        return {"loss": loss(*of_sides(inputs), sample_mask=mask)}

    return Setup({"edge": edge, "transform": transform}.get(case.name, everything))


def series(inputs, path):
    """Returns the tensors `{path}0`, `{path}1`, ... in their order."""
    return [inputs[f"{path}{index}"] for index in range(sum(k.startswith(path) for k in inputs))]


def of_convolution(layer, path):
    """Returns the variables of a `NormalizedConvolution` by the names under `path`."""
    return {
        f"{path}/kernel": layer.convolution.kernel,
        f"{path}/gamma": layer.normalization.gamma,
        f"{path}/beta": layer.normalization.beta,
    }


def ofd(case):
    loss = losses.get("ofd")
    arrays = case.under("input")
    given = [
        taps.Normalization(arrays[f"teacher_bn/{spot}/gamma"], arrays[f"teacher_bn/{spot}/beta"])
        for spot in range(len(case.series("input/student")))
    ]
    loss.set_normalizations(given)
    loss.build(
        *([x.shape for x in case.series(f"input/{side}")] for side in ("student", "teacher"))
    )

    def values(inputs, mask):
        student, teacher = series(inputs, "student/"), series(inputs, "teacher/")
        margins = {
            f"margin/{spot}": loss.margin(spot, x, tf.ones(len(x)))
            for spot, x in enumerate(teacher)
        }
        return {"loss": loss(student, teacher, sample_mask=mask, training=True), **margins}

    params = {}
    for spot, connector in enumerate(loss.connectors):
        params |= of_convolution(connector, f"connector/{spot}")
    return Setup(values, params)


def srrl(case):
    loss = losses.get("srrl")
    arrays = case.under("input")
    # The gradient reaches the connector alone; the classifier is the teacher's.
    loss.set_classifiers(
        teacher=taps.Classifier(arrays["classifier/kernel"], arrays["classifier/bias"])
    )
    loss.build([arrays["student"].shape], [arrays["teacher"].shape])

    def values(inputs, mask):
        features = [inputs["student"]], [inputs["teacher"]]
        return {"loss": loss(*features, sample_mask=mask, training=True)}

    return Setup(values, of_convolution(loss.connectors[0], "connector"))


def cat_kd(case):
    normalized = "norm" in case.name.split("_")
    loss = losses.get("cat_kd", resolution=int(case.arguments["r"]), normalized=normalized)
    kernel = keras.Variable(case.under("param")["student/kernel"])

    def values(inputs, mask):
        loss.set_classifiers(taps.Classifier(kernel), taps.Classifier(inputs["teacher/kernel"]))
        return {"loss": loss([inputs["student"]], [inputs["teacher"]], sample_mask=mask)}

    return Setup(values, {"student/kernel": kernel})


def of_dense(layer, path):
    """Returns the variables of a dense layer or convolution by the names under `path`."""
    return {f"{path}/kernel": layer.kernel, f"{path}/bias": layer.bias}


def built(loss, case):
    """Builds a loss of several spots; returns what computes its value in training mode."""
    shapes = ([x.shape for x in case.series(f"input/{side}")] for side in ("student", "teacher"))
    loss.build(*shapes)

    def values(inputs, mask):
        features = series(inputs, "student/"), series(inputs, "teacher/")
        return {"loss": loss(*features, sample_mask=mask, training=True)}

    return values


def reviewkd(case):
    loss = losses.get("reviewkd")
    values, params = built(loss, case), {}
    for level, fusion in enumerate(loss.fusions):
        params |= of_convolution(fusion.entry, f"fusion/{level}/in")
        params |= of_convolution(fusion.exit, f"fusion/{level}/out")
        if level:
            params |= of_dense(fusion.attention, f"fusion/{level}/attention")
    return Setup(values, params)


def mgd(case):
    loss = losses.get("mgd", drop_rate=case.arguments["lambda"])
    shapes = [case.under("input")[side].shape for side in ("student", "teacher")]
    loss.build(*([shape] for shape in shapes))

    def values(inputs, mask):
        loss.draw_kept = lambda shape: inputs["kept"]
        features = [inputs["student"]], [inputs["teacher"]]
        return {"loss": loss(*features, sample_mask=mask, training=True)}

    params = {} if shapes[0] == shapes[1] else of_dense(loss.aligners[0], "align")
    for step, layer in enumerate(loss.generators[0]):
        params |= of_dense(layer, f"generation/{step}")
    return Setup(values, params)


def semckd(case):
    loss = losses.get("semckd", batch_size=len(case.series("input/student")[0]))
    value, params = built(loss, case), {}

    def values(inputs, mask):
        features = series(inputs, "student/"), series(inputs, "teacher/")
        attention = loss.attention(*features, tf.ones(loss.batch_size))
        return {**value(inputs, mask), "attention": attention}

    for name, embeddings in (("query", loss.queries), ("key", loss.keys)):
        for spot, layers in enumerate(embeddings):
            for step, layer in enumerate(layers):
                params |= of_dense(layer, f"{name}/{spot}/{step}")
    for i, row in enumerate(loss.projections):
        for j, (first, second, last) in enumerate(row):
            params |= of_convolution(first, f"regressor/{i}{j}/0")
            params |= of_convolution(second, f"regressor/{i}{j}/1")
            params[f"regressor/{i}{j}/2/kernel"] = last.kernel
    return Setup(values, params)


def of_teachers(loss, published):
    """The setup of a loss that weighs teachers; `published` makes published weights of ours."""

    def values(inputs, mask):
        teachers = series(inputs, "teacher/")
        student, masks = [inputs["student"]] * len(teachers), [mask] * len(teachers)
        labels = inputs.get("labels")
        weights = published(loss.teacher_weights(student, teachers, labels, masks))
        value = loss(student, teachers, labels=labels, sample_mask=mask)
        return {"loss": value, "weights": weights}

    return Setup(values)


def mean_of_teachers(case):
    if case.name == "features":
        return confident_features(case)
    loss = losses.get(case.id, temperature=case.arguments["T"])
    return of_teachers(loss, lambda weights: weights.shape[-1] * weights)


def confident_features(case):
    """The published case begins after the adapters and the teachers' classifiers."""
    through = [keras.Variable(logits) for logits in case.series("param/through")]

    def values(inputs, mask):
        maps = series(inputs, "student/"), series(inputs, "teacher/")
        loss = confidence_weighted_distances(*maps, through, inputs["labels"])
        return {
            "loss": losses.masked_mean(loss, mask),
            "weights": confidences([one.value for one in through], inputs["labels"]),
        }

    return Setup(values, {f"through/{k}": one for k, one in enumerate(through)})


def agreement(case):
    loss = losses.get(
        "aekd",
        temperature=case.arguments["T"],
        largest_weight=case.arguments["C"],
        normalize="norm" in case.name.split("_"),
        # That of the published solver.
        solver_tolerance=1e-3,
    )
    setup = of_teachers(loss, lambda weights: weights)

    def values(inputs, mask):
        teachers = series(inputs, "teacher/")
        given = [inputs["student"]] * len(teachers), teachers, [mask] * len(teachers)
        return {**setup.values(inputs, mask), "gram": loss.gram(*given)[0]}

    return Setup(values)


def oriented(case):
    """Some steps of the optimizer, with the published settings."""
    starts = [one["start"] for one in nested(case.under("input"))]
    variables = [keras.Variable(start) for start in starts]
    optimizer = tfkd.optimizers.DOT(0.05, 0.9, case.arguments["delta"], weight_decay=5e-4)
    optimizer.build(variables)

    def values(inputs, mask):
        parts, found, step = nested(inputs), {}, 1
        while f"task_gradient_{step}" in parts[0]:
            names = f"task_gradient_{step}", f"distillation_gradient_{step}"
            optimizer.apply([tf.stack([one[name] for name in names]) for one in parts], variables)
            for index, variable in enumerate(variables):
                found[f"{index}/after_step_{step}"] = tf.identity(variable.value)
            step += 1
        return found

    return Setup(values)


def branched(cls, case, **arguments):
    """Returns a method of branches for a case, and a batch of its labels.

    The student is only as wide as what the case gives in its place.
    """
    given = case.under("input")
    if "shared" in given:
        image = keras.Input(given["shared"].shape[1:])
        features, classes = case.under("param")["classifier/0/kernel"].shape
    else:
        image = keras.Input((4, 4, 1))
        features, classes = 1, given["ensemble"].shape[-1]
    x = keras.layers.Conv2D(image.shape[-1], 1, name="trunk")(image)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.Conv2D(features, 1)(x))
    student = keras.Model(image, keras.layers.Dense(classes)(x))
    weight = case.arguments.get("ramp", 1.0)
    distiller = cls(student, branch_at="trunk", distillation_weight=weight, ramp=0, **arguments)
    distiller.compile("sgd")

    def objective(inputs, mask, branches, *further):
        labels = inputs["labels"]
        batch = Batch(image, labels, mask, None, len(labels), 1.0)
        terms = distiller.teach(batch, branches, *further)
        return sum(weight * value for weight, value in terms.values()), terms

    return distiller, objective


def of_branches(inputs, classifiers):
    """Returns what branches make of slices of the shared channels."""
    vectors = tf.split(tf.reduce_mean(inputs["shared"], (1, 2)), len(classifiers), axis=-1)
    logits = [x @ kernel.value + bias.value for x, (kernel, bias) in zip(vectors, classifiers)]
    return {"trunk": inputs["shared"], "pooled": vectors, "logits": logits}


def classifiers_of(case):
    """Returns `([(kernel, bias), ...], {name: variable})` of the branches' classifiers."""
    params = {
        name: keras.Variable(array)
        for name, array in case.under("param").items()
        if name.startswith("classifier/")
    }
    found = range(len(params) // 2)
    names = [(f"classifier/{one}/kernel", f"classifier/{one}/bias") for one in found]
    return [tuple(params[name] for name in pair) for pair in names], params


def native_ensemble(case):
    classifiers, params = classifiers_of(case)
    distiller, objective = branched(tfkd.ONE, case, branches=len(classifiers))

    def values(inputs, mask):
        branches = of_branches(inputs, classifiers)
        branches |= distiller.join(branches, training=True)
        loss, terms = objective(inputs, mask, branches)
        hard = sum(terms[name][1] for name in distiller.label_terms)
        soft = terms["kd_loss"][1]
        return {"loss": loss, "ensemble": branches["ensemble"], "hard": hard, "soft": soft}

    dense, normalization, _ = distiller.gate.layers
    params |= of_dense(dense, "gate")
    return Setup(
        values, params | {"gate_bn/gamma": normalization.gamma, "gate_bn/beta": normalization.beta}
    )


def diverse_peers(case):
    """The leader is the last of the case, and the first of ours."""
    classifiers, params = classifiers_of(case)
    kernel = case.under("param")["query/kernel"]
    reduction = kernel.shape[0] / kernel.shape[1]
    distiller, objective = branched(
        tfkd.OKDDip, case, branches=len(classifiers), reduction=reduction
    )

    def values(inputs, mask):
        branches = of_branches(inputs, classifiers)
        for name in ("pooled", "logits"):
            *peers, leader = branches[name]
            branches[name] = [leader, *peers]
        branches |= distiller.join(branches, training=True)
        loss, terms = objective(inputs, mask, branches)
        return {
            "loss": loss,
            "hard": terms["student_loss"][1] + terms["branches_loss"][1],
            "peers": terms["peers_kd_loss"][1],
            "leader": terms["leader_kd_loss"][1],
            "targets": distiller.mixtures(branches)[0],
        }

    layer = distiller.attention
    return Setup(
        values, params | {"query/kernel": layer.query.kernel, "key/kernel": layer.key.kernel}
    )


def peer_collaboration(case):
    distiller, objective = branched(tfkd.PCL, case, branches=len(case.series("input/peer")))

    def values(inputs, mask):
        branches = {"logits": series(inputs, "peer/"), "ensemble": inputs["ensemble"]}
        return {"loss": objective(inputs, mask, branches, series(inputs, "mean_peer/"))[0]}

    return Setup(values)


def nested(tensors):
    """Returns `[{rest: tensor}, ...]` of `{"0/rest": tensor, ...}`."""
    found = {}
    for name, tensor in tensors.items():
        index, _, rest = name.partition("/")
        found.setdefault(int(index), {})[rest] = tensor
    return [found[index] for index in sorted(found)]


def entropy(logits, temperature, mask):
    """Returns by how much a cross-entropy with soft targets is above the divergence."""
    logs = tf.nn.log_softmax(logits / temperature)
    return -losses.masked_mean(tf.reduce_sum(tf.exp(logs) * logs, -1), mask)


def own_end(case):
    """The published values are a cross-entropy, and a sum over the batch."""
    if case.name == "feature":
        loss = ActiveFeatures()
        return Setup(
            lambda inputs, mask: {
                "loss": len(inputs["student"]) * loss([inputs["student"]], [inputs["teacher"]])
            }
        )
    temperature = case.arguments["T"]
    setup = of_logits(losses.get("kd", temperature=temperature))

    def values(inputs, mask):
        constant = entropy(inputs["teacher"], temperature, mask)
        return {"loss": setup.values(inputs, mask)["loss"] + temperature**2 * constant}

    return Setup(values)


def synergy(case):
    def values(inputs, mask):
        peers = series(inputs, "peer/")
        pupils, targets = zip(*itertools.permutations(peers, 2))
        value = losses.get("kd", temperature=1.0)(list(pupils), list(targets), sample_mask=mask)
        labels = [cross_entropy(inputs["labels"], logits, mask) for logits in peers]
        return {"loss": sum(labels) + value}

    return Setup(values)


def task_oriented(case):
    """One learner, at the temperature after 100 of 250 epochs."""
    kernel, temperature = keras.Variable(case.under("param")["link/kernel"]), 2.2

    def values(inputs, mask):
        linked = tf.matmul(inputs["student"], kernel)
        soft = [[inputs[f"{side}_logits"] / temperature] for side in ("student", "teacher")]
        parts = {
            "feature": 0.05 * FrobeniusDistance()([linked], [inputs["teacher"]]),
            "soft": losses.get("kd", temperature=1.0)(*soft)
            + entropy(inputs["teacher_logits"], temperature, None),
            "orthogonal": 0.03 * orthogonality(kernel),
            "hard": cross_entropy(inputs["labels"], inputs["student_logits"]),
        }
        return {"loss": sum(parts.values()), **parts}

    return Setup(values, {"link/kernel": kernel})


def attractive(case):
    """The parts of the generator's objective, of the selected samples."""

    def values(inputs, mask):
        (features,) = inputs.values()
        if case.name == "one_hot":
            return {"loss": losses.masked_mean(uncertainty(features), mask)}
        if case.name == "activation":
            strength = tf.reduce_mean(tf.abs(features), -1)
            return {"loss": -losses.masked_mean(strength, mask)}
        share = tf.reduce_mean(selection(mask, features))
        prediction = tf.nn.softmax(features) * selection(mask, features)[:, None]
        return {"loss": share * imbalance(tf.reduce_mean(prediction, 0) / share)}

    return Setup(values)


MAKERS = {
    "ls_kd": standardized,
    "ls_dkd": standardized,
    "ctkd": curriculum,
    "dist": dist,
    "nkd": normalized,
    "wsld": soft_labels,
    "ttm": transformed,
    "wttm": transformed,
    "mlkd": multi_level,
    "teacher_free_reg": virtual,
    "teacher_free_self": own_teacher,
    "irg": irg,
    "ofd": ofd,
    "srrl": srrl,
    "cat_kd": cat_kd,
    "reviewkd": reviewkd,
    "mgd": mgd,
    "semckd": semckd,
    "camkd": mean_of_teachers,
    "ebkd": mean_of_teachers,
    "aekd": agreement,
    "dot": oriented,
    "one": native_ensemble,
    "okddip": diverse_peers,
    "pcl": peer_collaboration,
    "byot": own_end,
    "dks": synergy,
    "tofd": task_oriented,
    "dafl": attractive,
}


def evaluate(case, masked, compiled):
    """Returns `{name: value}` and `{name: gradient}`, of what the case has gradients of."""
    setup = MAKERS[case.id](case)
    params = case.under("param")
    assert set(setup.params) == set(params)
    for name, variable in setup.params.items():
        variable.assign(np.reshape(params[name], variable.shape))
    inputs = {name: tf.constant(array) for name, array in case.under("input").items()}
    mask = inputs.pop("mask", None)
    wanted = set(case.under("grad_masked" if masked else "grad"))

    def run(inputs, mask):
        variables = {name: variable.value for name, variable in setup.params.items()}
        sources = {name: x for name, x in {**inputs, **variables}.items() if name in wanted}
        with tf.GradientTape() as tape:
            tape.watch(sources)
            values = setup.values(inputs, mask)
        zero = tf.UnconnectedGradients.ZERO
        return values, tape.gradient(values["loss"], sources, None, zero) if sources else {}

    function = tf.function(run, jit_compile=True) if compiled else run
    return function(inputs, mask if masked else None)


def check(expected, found, **tolerance):
    for name, array in expected.items():
        np.testing.assert_allclose(
            np.reshape(found[name], array.shape), array, err_msg=name, atol=1e-6, **tolerance
        )


def test_the_file_has_every_id():
    assert {case.id for case in CASES.values()} >= set(MAKERS)


def runs():
    """Every case eager, and by XLA, which compiles for seconds."""
    for name, case in CASES.items():
        if case.id in MAKERS:
            yield pytest.param(name, False, id=f"{name}-eager")
            yield pytest.param(name, True, marks=pytest.mark.slow, id=f"{name}-xla")


@pytest.mark.parametrize("name, compiled", runs())
def test_equals_the_published_numbers(name, compiled):
    case = CASES[name]
    for suffix in ("", "_masked"):
        expected = case.under(f"value{suffix}")
        if expected:
            values, gradients = evaluate(case, bool(suffix), compiled)
            shown = {key: array for key, array in expected.items() if key in values}
            assert shown and ("loss" in shown) == ("loss" in expected)
            check(shown, values, rtol=1e-4)
            check(case.under(f"grad{suffix}"), gradients, rtol=1e-3)
