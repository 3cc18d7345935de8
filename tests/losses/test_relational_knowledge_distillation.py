import numpy as np
import tensorflow as tf

from tfkd import losses


def by_definition(student, teacher, distance_weight, angle_weight):
    """The loss with one loop per index of the paper's sums."""

    def distances(features):
        n = len(features)
        table = [[np.linalg.norm(a - b) for a in features] for b in features]
        return np.array(table) / (np.sum(table) / (n * (n - 1)))

    def cosine(features, i, j, k):
        first, second = features[j] - features[i], features[k] - features[i]
        norms = np.linalg.norm(first) * np.linalg.norm(second)
        return first @ second / norms if norms else 0.0

    def huber(x):
        return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5

    n = len(student)
    distance = np.mean(np.vectorize(huber)(distances(student) - distances(teacher)))
    angle = np.mean(
        [
            huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
            for i in range(n)
            for j in range(n)
            for k in range(n)
        ]
    )
    return distance_weight * distance + angle_weight * angle


def test_value_by_definition():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(5, 3)), random.normal(size=(5, 4))
    for weights in ((25.0, 50.0), (1.0, 0.0), (0.0, 1.0)):
        loss = losses.RelationalKnowledgeDistillation(*weights)
        value = loss([tf.constant(student, "float32")], [tf.constant(teacher, "float32")])
        np.testing.assert_allclose(value, by_definition(student, teacher, *weights), rtol=1e-5)


def test_moving_turning_and_scaling_features_do_not_matter():
    student, teacher = tf.random.normal((6, 4)), tf.random.normal((6, 5))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    loss = losses.RelationalKnowledgeDistillation()
    moved = loss([3.0 * student @ rotation.astype("float32") + 10.0], [teacher])
    np.testing.assert_allclose(moved, loss([student], [teacher]), rtol=1e-4)
