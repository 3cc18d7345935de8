"""A trained teacher of digits, made once for all tests of this folder."""

import keras
import pytest
from checking import make, untrained

import tfkd


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    return tfkd.data.load("digits", batch_size=32, validation=0.3, augment=(), data_dir=directory)


@pytest.fixture(scope="session")
def teacher(digits):
    """A teacher of real digits, trained for a few seconds."""
    keras.utils.set_random_seed(0)
    model = untrained(digits)
    trainer = tfkd.KnowledgeDistiller(model)
    trainer.compile(tfkd.optimizers.SGD(0.05))
    trainer.fit(digits.train, epochs=3, verbose=0)
    return model


@pytest.fixture(scope="session")
def plain(digits, teacher):
    """The distiller of tests that only look: a check changes nothing."""
    return make(digits, teacher)
