import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import losses
from tfkd.errors import UsageError
from tfkd.losses import contrastive_representation_distillation as crd
from tfkd.losses.contrastive_representation_distillation import (
    contrastive_loss,
    moved_rows,
    noise_contrastive_loss,
    scores,
)
from tfkd.losses.numerics import normalize

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 1])
INDICES = tf.constant([3, 4, 9, 0])


def sample(**arguments):
    arguments = {"negatives": 5, "embedding_size": 6, "seed": 1, **arguments}
    loss = losses.ContrastiveRepresentationDistillation(**arguments)
    loss.set_examples(LABELS)
    loss.build([(4, 3)], [(4, 7)])
    return loss, [tf.random.normal((4, 3))], [tf.random.normal((4, 7))]


def state(loss):
    variables = (
        loss.memory_student,
        loss.memory_teacher,
        loss.normalizer_student,
        loss.normalizer_teacher,
    )
    return [np.array(variable) for variable in variables]


def test_noise_contrastive_loss_by_hand():
    # Two negatives of ten examples: noise 0.2.
    value = noise_contrastive_loss(tf.constant([[0.3, 0.2, 0.6]]), num_examples=10)
    expected = -(np.log(0.3 / 0.5) + np.log(0.2 / 0.4) + np.log(0.2 / 0.8))
    np.testing.assert_allclose(value, [expected], rtol=1e-5)


def test_scores_by_definition():
    anchors, bank = normalize(tf.random.normal((4, 6))), normalize(tf.random.normal((10, 6)))
    candidates = tf.constant([[0, 3, 9], [1, 1, 2], [9, 8, 0], [5, 4, 3]])
    expected = np.exp(np.einsum("bd,bkd->bk", anchors, tf.gather(bank, candidates)) / 0.5)
    np.testing.assert_allclose(scores(anchors, bank, candidates, 0.5), expected, rtol=1e-4)


def test_scores_of_more_products_than_int32_counts(monkeypatch):
    """Of a small set the same scores and gradients, by the positions that a large one needs."""
    anchors, bank = normalize(tf.random.normal((4, 6))), normalize(tf.random.normal((10, 6)))
    candidates = tf.constant([[0, 3, 3], [1, 1, 2], [9, 8, 0], [5, 4, 9]])
    found = []
    for largest in (crd.LARGEST_BATCH, 2**31):
        monkeypatch.setattr(crd, "LARGEST_BATCH", largest)

        @tf.function(input_signature=[tf.TensorSpec((None, 6))])
        def step(anchors):
            value = scores(anchors, bank, candidates, 0.5)
            return value, tf.gradients(value, anchors)[0]

        found.append(step(anchors))
    for small, large in zip(*found):
        np.testing.assert_allclose(small, large, rtol=1e-5)


@pytest.mark.parametrize("batch", [None, 1700])
def test_no_position_among_the_products_of_imagenet_is_int32(batch):
    """All of them would take 9 GB: only the graph is made."""

    @tf.function(input_signature=[tf.TensorSpec((batch, 1)), tf.TensorSpec((1281167, 1))])
    def step(anchors, bank):
        value = scores(anchors, bank, tf.zeros((tf.shape(anchors)[0], 5), "int32"))
        return tf.gradients(value, anchors)

    choosing = {"GatherV2": 1, "GatherNd": 1, "ScatterNd": 0, "UnsortedSegmentSum": 1}
    types = [
        (op.type, op.inputs[choosing[op.type]].dtype.name)
        for op in step.get_concrete_function().graph.get_operations()
        if op.type in choosing and op.inputs[choosing[op.type]].shape.rank != 0
    ]
    assert types and {kind for _, kind in types} == {"int64"}, types
    # TensorFlow counts all products in int32 there.
    assert "UnsortedSegmentSum" not in dict(types)


@pytest.mark.parametrize("rows", [[1], [0, 3], [0, 1, 2, 3]])
def test_mask_means_loss_on_the_selected_times_their_fraction(rows):
    student, teacher = (normalize(tf.random.normal((4, 6))) for _ in range(2))
    banks = [normalize(tf.random.normal((10, 6))) for _ in range(2)]
    negatives = tf.constant([[1, 2], [0, 2], [3, 5], [4, 4]])
    mask = tf.constant(np.isin(np.arange(4), rows))
    value, normalizers = contrastive_loss(
        student, teacher, *banks, INDICES, negatives, sample_mask=mask
    )
    expected, expected_normalizers = contrastive_loss(
        *(tf.gather(rows_of, rows) for rows_of in (student, teacher)),
        *banks,
        *(tf.gather(rows_of, rows) for rows_of in (INDICES, negatives)),
    )
    np.testing.assert_allclose(value, expected * len(rows) / 4, rtol=1e-5)
    np.testing.assert_allclose(normalizers, expected_normalizers, rtol=1e-5)


@pytest.mark.parametrize(
    "negatives", [4, *(pytest.param(many, marks=pytest.mark.slow) for many in (2, 16384))]
)
def test_negatives_are_of_other_classes_and_all_equally_likely(negatives):
    loss, _, _ = sample(negatives=negatives)
    drawn = np.concatenate([loss.draw_negatives(INDICES) for _ in range(300)], axis=1)
    assert drawn.shape == (4, 300 * min(negatives, len(LABELS)))
    for index, negative in zip(INDICES.numpy(), drawn):
        others = np.flatnonzero(LABELS[index] != LABELS)
        counts = np.bincount(negative, minlength=len(LABELS))
        assert counts[LABELS[index] == LABELS].sum() == 0
        # Six or seven others, at least 600 draws: five standard deviations at most.
        share = counts[others] / counts.sum()
        np.testing.assert_allclose(share, 1 / len(others), atol=5 * np.sqrt(0.14 / counts.sum()))


def test_negatives_of_one_draw_differ_where_there_are_enough():
    labels = np.arange(1000) % 2
    loss = losses.ContrastiveRepresentationDistillation(negatives=250, seed=0)
    loss.set_examples(labels)
    for drawn in np.array(loss.draw_negatives(tf.range(10))):
        assert len(set(drawn)) == 250  # one from each run of two


def test_draws_differ_between_calls_and_repeat_with_the_seed():
    first, second = (sample(seed=8)[0] for _ in range(2))
    draws = [np.array(first.draw_negatives(INDICES)) for _ in range(2)]
    assert np.any(draws[0] != draws[1])
    np.testing.assert_array_equal(draws[0], second.draw_negatives(INDICES))


def test_the_selected_rows_move_and_are_normalised():
    bank, embeddings = normalize(tf.random.normal((10, 6))), normalize(tf.random.normal((4, 6)))
    selected = tf.constant([1.0, 0.0, 1.0, 1.0])
    new = np.array(moved_rows(bank, INDICES, embeddings, selected, momentum=0.25))
    expected = np.array(bank)[INDICES]
    for row in (0, 2, 3):
        moved = 0.25 * bank[INDICES[row]] + 0.75 * embeddings[row]
        expected[row] = moved / np.linalg.norm(moved)
    np.testing.assert_allclose(new, expected, rtol=1e-5)


def test_of_an_index_twice_the_first_selected_sample_counts():
    bank, embeddings = normalize(tf.random.normal((10, 6))), normalize(tf.random.normal((4, 6)))
    selected = tf.constant([0.0, 1.0, 1.0, 1.0])
    twice = moved_rows(bank, tf.constant([7, 2, 7, 7]), embeddings, selected)
    once = moved_rows(bank, tf.constant([0, 2, 7, 1]), embeddings, selected)
    np.testing.assert_array_equal(twice, tf.gather(once, [2, 1, 2, 2]))


def test_training_moves_only_the_rows_of_the_batch():
    loss, student, teacher = sample()
    before = state(loss)
    loss(student, teacher, indices=INDICES, training=False)
    for old, new in zip(before, state(loss)):
        np.testing.assert_array_equal(old, new)
    loss(student, teacher, indices=INDICES, sample_mask=tf.constant([1, 1, 0, 1]), training=True)
    for old, new in zip(before[:2], state(loss)[:2]):
        np.testing.assert_array_equal(np.flatnonzero(np.any(old != new, axis=1)), [0, 3, 4])


def test_normalizers_are_fixed_at_the_first_training_call_with_a_selected_sample():
    loss, student, teacher = sample()
    loss(student, teacher, indices=INDICES, sample_mask=tf.zeros(4), training=True)
    assert state(loss)[2:] == [0, 0]
    loss(student, teacher, indices=INDICES, training=True)
    first = state(loss)[2:]
    assert min(first) > 0
    loss([-3 * student[0]], teacher, indices=INDICES, training=True)
    assert state(loss)[2:] == first


def test_embeddings_are_trained_and_the_banks_are_not():
    loss, student, teacher = sample()
    with tf.GradientTape() as tape:
        value = loss(student, teacher, indices=INDICES, training=True)
    variables = [variable.value for variable in loss.trainable_variables]
    assert len(variables) == 4
    assert all(np.any(gradient) for gradient in tape.gradient(value, variables))


def test_compiled_step_gives_the_same_loss_and_state():
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(2)
        loss, student, teacher = sample()
        negatives = tf.constant([[1, 2], [0, 2], [3, 5], [4, 7]])
        loss.draw_negatives = lambda indices, negatives=negatives: negatives
        step = tf.function(loss, jit_compile=jit_compile)
        values = [step(student, teacher, indices=INDICES, training=True) for _ in range(3)]
        results.append([*values, *state(loss)])
    for eager, compiled in zip(*results):
        np.testing.assert_allclose(eager, compiled, rtol=1e-4, atol=1e-6)


def test_variables_are_the_whole_state():
    # What a checkpoint holds: banks, normalisers, embeddings and random state.
    first, student, teacher = sample(seed=None)
    first(student, teacher, indices=INDICES, training=True)
    second, _, _ = sample(seed=None)
    for one, other in zip(first.variables, second.variables, strict=True):
        other.assign(one)
    results = [loss(student, teacher, indices=INDICES, training=True) for loss in (first, second)]
    np.testing.assert_array_equal(*results)
    for one, other in zip(state(first), state(second)):
        np.testing.assert_array_equal(one, other)


def test_replicas_that_see_the_global_batch_make_one_update():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        mirrored, student, teacher = sample()
    alone, _, _ = sample()
    for one, other in zip(alone.variables, mirrored.variables, strict=True):
        one.assign(other)

    @tf.function
    def step():
        return strategy.run(lambda: mirrored(student, teacher, indices=INDICES, training=True))

    for _ in range(2):
        expected = alone(student, teacher, indices=INDICES, training=True)
        for value in strategy.experimental_local_results(step()):
            np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(alone.variables, mirrored.variables):
        for copy in strategy.experimental_local_results(other.value):
            np.testing.assert_allclose(copy, one, rtol=1e-5, atol=1e-7)


def test_only_the_rows_of_the_batch_pass_between_replicas():
    """Not the memories, which are as large as the training set."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        loss, student, teacher = sample()
    first, second = strategy.experimental_local_results(loss.memory_student.value)
    second.assign_add(tf.ones_like(second))
    before = np.array(second)

    @tf.function
    def step():
        strategy.run(lambda: loss(student, teacher, indices=INDICES, training=True))

    step()
    rows = np.isin(np.arange(len(LABELS)), INDICES)
    np.testing.assert_array_equal(np.array(second)[rows], np.array(first)[rows])
    np.testing.assert_array_equal(np.array(second)[~rows], before[~rows])


@pytest.mark.parametrize(
    "labels, message",
    [
        (LABELS[:5], "was made for 10"),
        (np.zeros(10, "int64"), "at least two classes"),
        (LABELS.astype("float32"), "as integers"),
        (LABELS[:, None], "as integers"),
    ],
)
def test_examples_that_do_not_fit(labels, message):
    loss = losses.ContrastiveRepresentationDistillation(num_examples=10)
    with pytest.raises(UsageError, match=message):
        loss.set_examples(labels)


def test_examples_and_indices_are_needed():
    loss, student, teacher = sample()
    with pytest.raises(UsageError, match="indices="):
        loss(student, teacher)
    loss = losses.ContrastiveRepresentationDistillation(num_examples=10)
    with pytest.raises(UsageError, match="set_examples"):
        loss(student, teacher, indices=INDICES)
