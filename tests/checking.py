"""Models and distillers of digits, for the tests of `check`."""

import keras
import tiny
from keras import layers

import tfkd


def untrained(digits, seed=1):
    return tfkd.models.create("resnet14", digits.num_classes, digits.input_shape, seed=seed)


def make(digits, teacher, **arguments):
    student = tfkd.models.create("resnet8", digits.num_classes, digits.input_shape, seed=2)
    arguments = {"losses": ["kd", "at"], **arguments}
    distiller = tfkd.KnowledgeDistiller(student, teacher, **arguments)
    distiller.compile("sgd")
    return distiller


def pixels(digits, white):
    """Validation data that nobody has normalised."""
    return digits.validation.map(lambda x, y: (white * (x * digits.std[0] + digits.mean[0]), y))


def headed(name, *head):
    """A classifier of `tiny.SHAPE` with some layers in front."""
    inputs = keras.Input(tiny.SHAPE)
    x = inputs
    for layer in head:
        x = layer(x)
    x = layers.Conv2D(4, 3, name=f"{name}_conv")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)), name=name)
