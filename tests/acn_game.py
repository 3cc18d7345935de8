"""Small games of ACN for tests: networks, and classifiers that are divided from the start."""

import functools

import keras
import tensorflow as tf
from mutual_learning import images, students
from tiny import EAGER, values

import tfkd

SMALL = {
    "generator_width": 4,
    "generator_blocks": 1,
    "discriminator_width": 4,
    "noise_size": 4,
    "warm_up": 0,
}
#: Of classifiers, generator and discriminator, so that one step changes each.
RATES = (0.05, 0.2, 0.1)


def make(models=None, rates=(0.0, 0.0, 0.0), epoch=0, compile_arguments=EAGER, **arguments):
    """A compiled distiller; rates are those of students, generator and discriminator."""
    distiller = tfkd.ACN(models or divided(), **{**SMALL, **arguments})
    own, generator, discriminator = (keras.optimizers.SGD(rate) for rate in rates)
    distiller.compile(
        own,
        **{
            "metrics": ["accuracy"],
            "generator_optimizer": generator,
            "discriminator_optimizer": discriminator,
            **compile_arguments,
        },
    )
    distiller.start_epoch(epoch)
    return distiller


def searching(*args, **arguments):
    return make(*args, adversarial_every=2, epoch=0, **arguments)


def learning(*args, **arguments):
    return make(*args, adversarial_every=2, epoch=1, **arguments)


@functools.cache
def divided_weights():
    models = students()
    for model in models:
        for layer in model.layers:
            layer.momentum = 0.0
        # The moving averages become those of some images.
        model(images()[0], training=True)
        kernel = model.get_layer("logits").kernel
        kernel.assign(6 * kernel)
    return [values(model.weights) for model in models]


def divided(**arguments):
    """Classifiers sure enough of themselves to divide, by some images more and by others less."""
    models = students(**arguments)
    for model, arrays in zip(models, divided_weights()):
        model.set_weights(arrays)
    return models


def networks(distiller):
    return [*distiller.students, distiller.generator, distiller.discriminator]


def jensen_shannon(logits, temperature=1.0):
    """By its definition, the entropy of the mean less the mean of the entropies."""

    def entropy(p):
        return -tf.reduce_sum(p * tf.math.log(p), -1)

    predictions = [tf.nn.softmax(z / temperature) for z in logits]
    entropies = [entropy(p) for p in predictions]
    return entropy(tf.add_n(predictions) / len(logits)) - tf.add_n(entropies) / len(logits)
