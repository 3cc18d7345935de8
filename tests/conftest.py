"""Set-up that must precede the first use of TensorFlow, and fixtures for all tests."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tensorflow as tf  # noqa: E402, I001

import tfkd  # noqa: E402, F401  (sets what TensorFlow reads when it is imported)

# Four logical devices for the tests of several replicas, which cannot be had later.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process per core: more threads each would only compete.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def without_tuner(dataset, begin=tf.data.Dataset.__iter__):
    """Begins a pass over a data set that TensorFlow does not tune.

    TensorFlow 2.21 lets the end of an iterator wait until its tuner wakes up. Of one that has lived
    for a minute, as in a cycle that Python collects later, that takes up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return begin(dataset.with_options(options))


tf.data.Dataset.__iter__ = without_tuner


@pytest.fixture(autouse=True)
def same_start(request):
    """Every test starts from the same random state and policy."""
    import keras

    keras.utils.set_random_seed(0)
    yield
    # Afterwards: what a fixture of a module makes precedes the next test.
    keras.config.set_dtype_policy("float32")
    if request.node.get_closest_marker("slow"):
        # TensorFlow keeps the kernels of every graph that ran: 100 MB and more a test.
        keras.utils.clear_session()


def pytest_configure(config):
    """Leaves graphs as they are traced in the fast tests; slow ones optimize them, as users do.

    TensorFlow's graph optimizer takes a third of the time of tracing and two steps.
    """
    optimize_graphs(config.option.markexpr == "slow")


def optimize_graphs(enabled):
    """Lets TensorFlow optimize each graph before its first step, or not."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not enabled})


@pytest.fixture
def optimized_graphs(pytestconfig):
    """Graphs as users run them, in a fast test too."""
    optimize_graphs(True)
    yield
    pytest_configure(pytestconfig)
