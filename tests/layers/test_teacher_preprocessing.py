import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UsageError
from tfkd.layers import TeacherPreprocessing


def images(size=8, channels=3):
    return np.random.default_rng(0).uniform(size=(2, size, size, channels)).astype("float32")


def test_it_undoes_the_students_normalisation_and_applies_the_teachers():
    pixels = images()
    student_mean, student_std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    seen_by_student = ((pixels - student_mean) / student_std).astype("float32")
    for scale, mean, std in ((1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), (255, 127.5, 127.5)):
        layer = TeacherPreprocessing(
            mean=mean,
            std=std,
            student_mean=tuple(student_mean),
            student_std=tuple(student_std),
            scale=scale,
        )
        expected = (pixels * scale - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(layer(seen_by_student), expected, rtol=1e-4, atol=1e-5)
        again = TeacherPreprocessing.from_config(layer.get_config())
        np.testing.assert_array_equal(again(seen_by_student), layer(seen_by_student))


@pytest.mark.parametrize("source, target", [(8, 16), (8, 5), (7, 32), (32, 8), (9, (4, 20))])
def test_it_resizes_as_tensorflow_does_with_antialiasing(source, target):
    x = images(source)
    size = target if isinstance(target, tuple) else (target, target)
    expected = tf.image.resize(x, size, antialias=True)
    layer = TeacherPreprocessing(size=target)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    # TensorFlow's own operation does not compile with XLA.
    np.testing.assert_allclose(
        tf.function(layer, jit_compile=True)(x), expected, rtol=1e-5, atol=1e-6
    )
    of_any_size = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 3))])
    np.testing.assert_allclose(of_any_size(x), expected, rtol=1e-5, atol=1e-6)
    assert layer.compute_output_shape((None, source, source, 3)) == (None, *size, 3)


def test_one_channel_becomes_three():
    x = images(channels=1)
    layer = TeacherPreprocessing(channels=3, mean=(0.1, 0.2, 0.3), student_mean=(0.5,))
    found = np.array(layer(x))
    np.testing.assert_allclose(found, x + 0.5 - np.array([0.1, 0.2, 0.3]), rtol=1e-5, atol=1e-6)
    assert layer.compute_output_shape(x.shape) == found.shape
    np.testing.assert_array_equal(TeacherPreprocessing(channels=3)(images()), images())


def test_it_keeps_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = images() * 255
    found = TeacherPreprocessing(size=16)(x)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, tf.image.resize(x, (16, 16)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 0}, "size must be a positive whole number or a pair"),
        ({"size": (4, 4, 4)}, "size must be"),
        ({"std": 0.0}, "std must be a positive number, or one per channel; received 0.0"),
        ({"student_std": (1.0, -1.0)}, "student_std must be a positive number"),
        ({"mean": "imagenet"}, "mean must be a number, or one per channel"),
        ({"scale": -1}, "scale must be a number greater than 0"),
        ({"channels": 0}, "channels must be a number greater than 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(UsageError, match=message):
        TeacherPreprocessing(**arguments)


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({"channels": 3}, (2, 8, 8, 2), "repeat one channel to 3; the student's images have 2"),
        ({"mean": (0.1, 0.2, 0.3)}, (2, 8, 8, 1), "mean=.* one for each of the 1 channels"),
        ({"size": 4}, (2, 8), r"takes images .*; received shape \(2, 8\)"),
    ],
)
def test_images_that_do_not_fit(arguments, shape, message):
    with pytest.raises(UsageError, match=message):
        TeacherPreprocessing(**arguments)(np.zeros(shape, "float32"))
