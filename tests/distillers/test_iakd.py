"""IAKD: what the mechanism promises, on one device and on several."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import EAGER, assert_equal, values

import tfkd
from tfkd.data.augmentation import Augmentation
from tfkd.data.pipeline import EpochCounter, InMemory, training_pipeline
from tfkd.errors import UsageError

BATCH = 16


def optimizer():
    return tfkd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4)


def make(width=4, student=None, compile_arguments=None, sgd=None, **arguments):
    """A compiled distiller; a teacher of another width than 4 needs transitions."""
    student = student or tiny.model(seed=1)
    teacher = tiny.model(width, name="teacher", seed=2)
    distiller = tfkd.IAKD(student, teacher, **arguments)
    distiller.compile(sgd or optimizer(), metrics=["accuracy"], **(compile_arguments or {}))
    return distiller


def fixed(distiller, *kept):
    """Lets a distiller draw the same blocks in every step."""
    distiller.draw = lambda size: [tf.constant(keep) for keep in kept]
    return distiller


def fit(model, epochs=2, examples=3 * BATCH, **arguments):
    x, y = tiny.data(examples)
    return model.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **arguments
    ).history


@pytest.mark.usefixtures("optimized_graphs")
def test_keeping_every_block_is_ordinary_training_bit_for_bit():
    """The condition is there, and its draw; and the optimizer moves what has a gradient."""
    tfkd.runtime.set_fused_batch_normalization(False)
    try:
        distiller = make(width=8, start=1.0)
        swapping = fit(distiller)
        alone = tfkd.KnowledgeDistiller(tiny.model(seed=1), losses=[])
        alone.compile(optimizer(), metrics=["accuracy"])
        fit(alone)
    finally:
        tfkd.runtime.set_fused_batch_normalization(True)
    assert swapping["swapped_share"] == [0, 0]
    plain = tiny.model(seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(optimizer(), loss=loss, jit_compile=distiller.jit_compile)
    fit(plain)
    assert_equal(values(distiller.student.variables), values(alone.student.variables))
    assert_equal(values(distiller.student.variables), values(plain.variables))


@pytest.mark.parametrize("statistics", ["moving", "batch"])
def test_swapping_every_block_leaves_stem_and_classifier_to_the_student(statistics):
    distiller = make(
        schedule="uniform", start=0.0, reestimation="never", teacher_statistics=statistics
    )
    x, y = tiny.data(BATCH)
    student, teacher = distiller.student, distiller.teacher
    features = tfkd.taps.segment(student, None, "stem")(x, training=True)
    before = values(teacher.variables)
    features = tfkd.taps.segment(teacher, "stem", "stage2")(
        features, training=statistics == "batch"
    )
    # Training mode has moved its statistics.
    for variable, value in zip(teacher.variables, before):
        variable.assign(value)
    logits = tfkd.taps.segment(student, "stage2")(features)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(float(loss(y, logits)), rel=1e-5)
    assert logs["swapped_share"] == logs["swapped_stage1"] == logs["swapped_stage2"] == 1
    assert_equal(values(teacher.variables), before)


@pytest.mark.parametrize(
    "replicas, eager", [(1, False), (1, True), pytest.param(2, False, marks=pytest.mark.slow)]
)
def test_a_swapped_block_learns_nothing_and_lets_gradients_through(replicas, eager):
    with tfkd.runtime.strategy("auto", replicas).scope():
        # The statistics that are recomputed would move too.
        distiller = make(
            8,
            sgd=keras.optimizers.SGD(0.1),
            reestimation="never",
            compile_arguments={"run_eagerly": eager},
        )
    fixed(distiller, True, False)
    first, second = distiller.parts.blocks
    groups = {
        "stem": distiller.parts.stem.variables,
        "before": first.student.variables,
        "swapped": second.student.variables,
        "classifier": distiller.parts.classifier.variables,
        "teacher": distiller.teacher.variables,
        "entry of the swapped": second.enter.variables,
        "exit of the swapped": second.leave.variables,
        "entry of the kept": first.enter.variables,
        "exit of the kept": first.leave.variables,
    }
    before = {name: values(group) for name, group in groups.items()}
    fit(distiller, 1, BATCH)
    still = {"swapped", "teacher", "entry of the kept", "exit of the kept"}
    for name, group in groups.items():
        changed = [not np.array_equal(a, v.numpy()) for a, v in zip(before[name], group)]
        assert not any(changed) if name in still else all(changed), name


def test_momentum_and_weight_decay_of_a_swapped_block_go_on():
    """To the optimizer its gradient is zero."""
    sgd = tfkd.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    distiller = make(sgd=sgd, compile_arguments=EAGER)
    fixed(distiller, True, True)
    kernel = distiller.parts.blocks[1].student.trainable_variables[0]
    x, y = tiny.data(BATCH)
    start = kernel.numpy()
    distiller.train_on_batch(x, y)
    velocity = (start - kernel.numpy()) / 0.1
    fixed(distiller, True, False)
    before = kernel.numpy()
    distiller.train_on_batch(x, y)
    expected = before - 0.1 * (0.9 * velocity + 0.01 * before)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_blocks_are_kept_at_the_rates_of_the_schedule_independently(sampling):
    rates = (0.3, 0.8)
    distiller = make(schedule=[tfkd.schedules.Constant(rate) for rate in rates], sampling=sampling)
    draws = 10_000
    if sampling == "sample":
        kept = np.stack([keep.numpy() for keep in distiller.draw(draws)], axis=1)
        again = np.stack([keep.numpy() for keep in distiller.draw(draws)], axis=1)
    else:
        draw = tf.function(lambda: distiller.draw(BATCH))
        kept = np.array([[keep.numpy() for keep in draw()] for _ in range(draws)])
        again = np.roll(kept, 1, axis=0)
    for block, rate in enumerate(rates):
        deviation = np.sqrt(rate * (1 - rate) / draws)
        assert abs(kept[:, block].mean() - rate) < 3 * deviation
        # One draw tells nothing of the next.
        assert abs(np.corrcoef(kept[:, block], again[:, block])[0, 1]) < 3 / np.sqrt(draws)
    assert abs(np.corrcoef(kept.T)[0, 1]) < 3 / np.sqrt(draws)


def probabilities(distiller, epochs, steps, at):
    distiller.start_training(epochs, steps)
    found = []
    for epoch in at:
        distiller.start_epoch(epoch)
        found.append(float(distiller.keep_probability[0]))
    return found


@pytest.mark.parametrize("source", ["run", "keras", "given", "scaled"])
def test_review_begins_again_when_the_learning_rate_drops(source):
    milestones = (150 / 240, 180 / 240, 210 / 240)
    steps, arguments = 10, {}
    rate = tfkd.optimizers.schedule("steps", 0.05, 240 * steps, milestones=milestones)
    if source == "keras":
        boundaries = [1500, 1800, 2100]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [4.0, 3.0, 2.0, 1.0])
    if source == "given":
        rate, arguments = 0.05, {"milestones": milestones}
    sgd = tfkd.optimizers.SGD(rate)
    if source == "scaled":
        sgd = keras.optimizers.LossScaleOptimizer(sgd)
    distiller = make(sgd=sgd, **arguments)
    assert probabilities(distiller, 240, steps, (0, 150, 180, 210)) == [0.5] * 4
    found = probabilities(distiller, 240, steps, (149, 179, 209, 239, 75))
    expected = [1 - 0.5 / 150, *[1 - 0.5 / 30] * 3, 0.75]
    assert found == pytest.approx(expected, rel=1e-6)
    # In a short run they fall on epochs too, and only where there are some.
    short = probabilities(distiller, 8, 300, (4, 5, 6, 7))
    assert short == pytest.approx([0.9, 0.5, 0.5, 0.5])
    assert probabilities(distiller, 1, 300, (0,)) == [0.5]


def test_the_other_schedules():
    assert (
        probabilities(make(schedule="uniform", start=0.3), 9, None, (0, 8))
        == [pytest.approx(0.3)] * 2
    )
    linear = make(schedule="linear", start=0.2, growth=0.5)
    assert probabilities(linear, 8, None, (0, 2, 4, 7)) == pytest.approx([0.2, 0.6, 1.0, 1.0])
    own = make(schedule=["linear", tfkd.schedules.Constant(0.25)])
    own.start_training(2, None)
    own.start_epoch(1)
    np.testing.assert_allclose(own.keep_probability, [0.75, 0.25])


def test_transitions_stand_where_shapes_differ_and_are_left_behind(tmp_path):
    assert make(4).transitions == []
    distiller = make(8)
    assert len(distiller.transitions) == 4
    for layer in distiller.transitions:
        convolution = layer.transformation
        assert convolution.kernel_size == (1, 1) and not convolution.use_bias
    trained = {id(variable) for variable in distiller.trainable_variables}
    assert all(id(v) in trained for t in distiller.transitions for v in t.trainable_variables)
    # The student's second stage has half the size of the teacher's first.
    cuts = [("stem", "stem"), ("stage2", "stage1")]
    distiller = make(8, blocks=cuts, compile_arguments=EAGER)
    parameters = distiller.student.count_params()
    fixed(distiller, False)
    history = fit(distiller, 1)
    assert history["swapped_stage2"] == [1]
    distiller.save(tmp_path / "student.keras")
    saved = keras.models.load_model(tmp_path / "student.keras")
    assert saved.count_params() == parameters
    x, _ = tiny.data(4)
    np.testing.assert_allclose(saved(x), distiller.student(x), rtol=1e-6)


@pytest.mark.parametrize("weight, runs", [(0.0, 0), (1.0, 1)])
def test_the_teacher_runs_in_full_for_kd_alone(weight, runs):
    distiller = make(kd_weight=weight)
    stem, calls = distiller.teacher.layers[1], []
    call = stem.call
    stem.call = lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs)
    x, y = tiny.data(BATCH)
    distiller.train_step((tf.constant(x), tf.constant(y)))
    assert len(calls) == runs


def test_kd_is_added_to_the_loss_on_the_labels():
    logs = fit(fixed(make(kd_weight=0.5, compile_arguments=EAGER), True, False), 1, BATCH)
    expected = logs["student_loss"][0] + 0.5 * logs["kd_loss"][0]
    assert logs["kd_loss"][0] > 0 and logs["loss"][0] == pytest.approx(expected, rel=1e-6)


def test_check_and_pictures(tmp_path):
    distiller = make(kd_weight=0.5, compile_arguments=EAGER)
    x, y = tiny.data(BATCH)
    report = distiller.check([(x, y)])
    assert report.losses["kd_loss"]["weight"] == 0.5
    history = fit(distiller, 3, BATCH)
    rows = [{name: value[i] for name, value in history.items()} for i in range(3)]
    for name, draw in distiller.pictures(rows).items():
        draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert history["keep_probability"] == pytest.approx([1 / 2, 4 / 6, 5 / 6])


WRONG = {
    "no teacher": ({"teacher": None}, "needs a teacher"),
    "subclassed": ({"student": tiny.Subclassed}, "student .* is subclassed"),
    "start": ({"start": 1.5}, "start must be a number between 0 and 1; received 1.5"),
    "growth": ({"growth": 0.0}, "growth must be above 0, and at most 1"),
    "schedule": ({"schedule": "cosine"}, "one of uniform, linear, review.*received 'cosine'"),
    "bounds": ({"schedule": tfkd.schedules.Cosine(0.5, 1.2, 3)}, "between 0 and 1; received 1.2"),
    "schedules": ({"schedule": ["linear"]}, "each of the 2 blocks .*stage1, stage2.*received 1"),
    "milestones": ({"milestones": (150, 180)}, "milestones are increasing fractions"),
    "sampling": ({"sampling": "epoch"}, "sampling 'epoch'.*batch, sample"),
    "statistics": ({"teacher_statistics": "own"}, "teacher_statistics 'own'.*moving, batch"),
    "granularity": ({"granularity": "layer"}, "granularity 'layer'.*stage, unit"),
    "reestimation": ({"reestimation": "no"}, "reestimation 'no'.*auto, always, never"),
    "batches": ({"reestimation_batches": 1.5}, "reestimation_batches must be a whole number"),
    "kd": ({"kd_weight": "much"}, "weight must be a number"),
    "temperature": ({"temperature": 0.0}, "temperature must be"),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_wrong_arguments_are_one_line(mistake):
    arguments, message = WRONG[mistake]
    arguments = {"student": tiny.shared, "teacher": lambda: tiny.shared(seed=2), **arguments}
    models = {role: arguments.pop(role) for role in ("student", "teacher")}
    with pytest.raises(UsageError, match=message):
        tfkd.IAKD(**{role: make and make() for role, make in models.items()}, **arguments)


class Overshooting(tfkd.schedules.Schedule):
    """Does not tell its bounds."""

    def __call__(self, epoch):
        return 0.75 + 0.5 * epoch


def test_wrong_use_while_training():
    x, y = tiny.data(BATCH)
    with pytest.raises(UsageError, match="at epoch 1, must be a number between 0 and 1.*1.25"):
        make(schedule=Overshooting()).start_epoch(1)
    with pytest.raises(UsageError, match="depend on the length of training"):
        make().start_epoch(1)
    generator = ((x, y) for _ in range(2))
    with pytest.raises(UsageError, match="reestimation='never'. Received generator"):
        make(schedule="uniform").fit(generator, verbose=0)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.01])
    with pytest.raises(UsageError, match="does not tell how many"):
        make(sgd=tfkd.optimizers.SGD(rate), reestimation="never").fit(generator, verbose=0)


def pipeline(epoch=0):
    """Two batches a pass, by a pipeline that counts its passes from an epoch on."""
    images, labels = tiny.data(2 * BATCH)
    examples = InMemory((64 * images + 128).astype("uint8"), labels.astype("int32"))
    counter = EpochCounter()
    counter.epoch = epoch

    def encode(images, labels):
        return tf.cast(images, "float32") / 64 - 2, labels

    flips = Augmentation(("flip",))
    return training_pipeline(examples, BATCH, 0, flips, encode, counter), counter


def test_statistics_are_recomputed_and_nothing_else_changes():
    """The data, dropout's draws, the weights and the swaps are those of a run without it."""
    distillers, histories = [], []
    for reestimation in ("always", "never"):
        keras.utils.set_random_seed(0)
        student = tiny.model(seed=1, dropout=0.5)
        distillers.append(make(8, student, reestimation=reestimation, compile_arguments=EAGER))
        data, counter = pipeline()
        validation = tiny.data(8)
        history = distillers[-1].fit(data, epochs=2, validation_data=validation, verbose=0)
        histories.append(history.history)
        assert counter.epoch == 2
    measured, plain = histories
    assert all(seconds > 0 for seconds in measured.pop("reestimation_seconds"))
    changed = {name for name in plain if measured[name] != plain[name]}
    assert changed <= {"val_loss", "val_accuracy"} and "val_loss" in changed
    assert_equal(*(values(d.trainable_variables) for d in distillers))
    seeds = [v for d in distillers for v in d.student.variables if "seed" in v.path]
    assert len(seeds) == 2
    assert_equal([seeds[0].numpy()], [seeds[1].numpy()])
    # On the one batch that they were measured on, they are the batch's own. Without dropout:
    # the features before the classifier.
    student = next(d.student for d in distillers if d.reestimation == "always")
    features = tfkd.taps.segment(student, None, "pooled")
    x, _ = next(iter(pipeline(epoch=2)[0]))
    np.testing.assert_allclose(
        features(x, training=False), features(x, training=True), rtol=1e-4, atol=1e-5
    )


def test_inherited_ends_make_the_teachers_blocks_the_teacher():
    distiller = make(schedule="uniform", start=0.0, inherit=True, reestimation="never")
    x, _ = tiny.data(BATCH)
    features = distiller.parts.stem(x, training=False)
    for block in distiller.parts.blocks:
        assert not block.transitions
        features, _ = block.run(False, features)
    np.testing.assert_allclose(
        distiller.parts.classifier(features, training=False),
        distiller.teacher(x, training=False),
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(
        UsageError, match="teacher's stem, which differs .*kernel .* 4.*kernel .* 8"
    ):
        make(8, inherit=True)


def test_statistics_are_averages_over_batches_of_any_size():
    x, y = tiny.data(2 * BATCH + 8)
    distiller = make(schedule="uniform", compile_arguments=EAGER)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    distiller.fit(data, verbose=0)
    norm = distiller.student.layers[2]
    features = tfkd.taps.segment(distiller.student, None, distiller.student.layers[1].name)
    # The last batch is left out of a data set that tells its length.
    batches = [np.array(features(x[i : i + BATCH])) for i in (0, BATCH)]
    means = [batch.mean((0, 1, 2)) for batch in batches]
    np.testing.assert_allclose(norm.moving_mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
    variances = [batch.var((0, 1, 2)) for batch in batches]
    np.testing.assert_allclose(norm.moving_variance, np.mean(variances, axis=0), rtol=1e-4)
    # Arrays are used to the end, and a batch counts by its size.
    distiller.fit(x, y, batch_size=BATCH, verbose=0)
    whole = np.array(features(x)).mean((0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "schedule, again",
    [
        ("uniform", True),
        ("linear", True),
        ("review", True),
        (tfkd.schedules.Constant(1.0), False),
        (tfkd.schedules.LinearWarmUp(0.0, 1.0, 1), False),
        (tfkd.schedules.LinearWarmUp(0.0, 1.0, 2), True),
        (tfkd.schedules.LinearWarmUp(0.0, 1.0, 9), True),
        (["review", "uniform"], True),
    ],
)
def test_statistics_are_recomputed_where_swaps_do_not_end(schedule, again):
    logs = fit(make(schedule=schedule, compile_arguments=EAGER), 2, BATCH)
    assert ("reestimation_seconds" in logs) == again
