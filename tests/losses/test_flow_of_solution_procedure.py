import numpy as np
import tensorflow as tf

from tfkd import losses
from tfkd.losses.flow_of_solution_procedure import flow


def test_flow_by_hand():
    first = tf.constant([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    second = tf.constant([[[[5.0]], [[7.0]]]])
    np.testing.assert_allclose(flow(first, second), [[[(5 + 21) / 2], [(10 + 28) / 2]]])


def test_flow_pools_the_larger_map():
    first = tf.reshape(tf.range(4.0), (1, 2, 2, 1))
    np.testing.assert_allclose(flow(first, tf.ones((1, 1, 1, 1))), [[[1.5]]])


def test_value_is_the_sum_of_mean_squares():
    student = [tf.random.normal((3, 8, 8, 2)), tf.random.normal((3, 4, 4, 3))]
    student.append(tf.random.normal((3, 4, 4, 5)))
    teacher = [tf.random.normal(tap.shape) for tap in student]
    pairs = [
        np.mean(np.square(flow(*student[i : i + 2]) - flow(*teacher[i : i + 2]))) for i in (0, 1)
    ]
    value = losses.FlowOfSolutionProcedure()(student, teacher)
    np.testing.assert_allclose(value, sum(pairs), rtol=1e-5)


def test_a_sample_counts_where_both_spots_of_a_pair_select_it():
    maps = [tf.random.normal((4, 4, 4, 2)) for _ in range(6)]
    masks = [tf.constant(mask) for mask in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1])]
    loss = losses.FlowOfSolutionProcedure()
    value = loss(maps[:3], maps[3:], sample_mask=masks)
    first = loss(maps[:2], maps[3:5], sample_mask=tf.constant([1, 0, 0, 0]))
    second = loss(maps[1:3], maps[4:], sample_mask=tf.constant([1, 0, 1, 0]))
    np.testing.assert_allclose(value, first + second, rtol=1e-5)
