"""Everything about the machine: strategies, precision, XLA, seeds.

The few places where Keras 3 needs help under `tf.distribute` are here and nowhere else.
"""

import itertools

import keras
import tensorflow as tf

from tfkd.errors import UsageError, unknown

STRATEGIES = ("auto", "one_device", "mirrored")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def strategy(name="auto", replicas=None):
    """Makes the `tf.distribute` strategy to build and train models in.

    Args:
        name: `"auto"` (mirrored where there are several GPUs, otherwise one device),
            `"one_device"` or `"mirrored"` (every GPU, or logical CPUs).
        replicas: Integer, the number of devices to mirror over; None for all GPUs. On a machine
            without a GPU the CPU is split into as many logical devices, which must happen
            before TensorFlow first touches it.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        UsageError: If the name is unknown or there are not that many devices.

    Example:
    ```python
    with tfkd.runtime.strategy("mirrored", replicas=2).scope():
        distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    ```
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    if replicas is not None and (not isinstance(replicas, int) or replicas < 1):
        raise UsageError(f"replicas must be a whole number of at least 1; received {replicas!r}.")
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 or (replicas or 1) > 1 else "one_device"
    if name == "one_device":
        if (replicas or 1) > 1:
            raise UsageError(f"strategy 'one_device' has 1 replica, not {replicas}: use mirrored.")
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if gpus:
        if (replicas or 1) > len(gpus):
            raise UsageError(f"replicas={replicas}, but this machine has {len(gpus)} GPU(s).")
        return _mirrored([gpu.name for gpu in gpus[:replicas]])
    return _mirrored(_logical_cpus(replicas or 1))


_STRATEGIES_MADE = itertools.count()


def _mirrored(devices):
    """Makes a mirrored strategy that can live beside others in one process.

    TensorFlow names a group of devices by a number that starts anew for each strategy, and a
    second strategy over another number of devices then fails with "joining a group with size ...".
    """
    key_base = next(_STRATEGIES_MADE) * 1000
    kind = tf.distribute.MirroredStrategy
    return type(kind.__name__, (kind,), {"_collective_key_base": key_base})(devices)


def _logical_cpus(count):
    """Returns the names of `count` logical CPU devices, splitting the CPU if need be."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or [None]) < count:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError as error:
            raise UsageError(
                f"replicas={count} needs as many logical CPUs, and TensorFlow has already started "
                "with fewer: call tfkd.runtime.strategy() before anything else."
            ) from error
    return [f"CPU:{index}" for index in range(count)]


def set_precision(name):
    """Sets the global dtype policy in which models are built.

    Args:
        name: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    keras.config.set_dtype_policy(name)


def set_seed(seed, deterministic=True):
    """Fixes every source of randomness of this process.

    Args:
        seed: Integer of at least 0.
        deterministic: Whether TensorFlow must use only operations that give the same bits on
            every run on the same machine.
    """
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def jit_compile():
    """Whether to compile a training step with XLA: what is faster on the device at hand.

    XLA halves the speed of convolutions on a CPU, and is off under several replicas as in Keras.
    """
    return bool(tf.config.list_physical_devices("GPU")) and num_replicas() == 1


def num_replicas():
    """Returns the number of replicas of the strategy in whose scope this is called."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share_of_batch(local_size):
    """Which part of the global batch this replica holds.

    Multiplying a mean over the replica's samples by it and adding up over the replicas gives the
    mean over the global batch, also where a last batch is divided unequally.

    Args:
        local_size: Integer tensor, the number of samples of this replica.

    Returns:
        The number 1.0 where there is one replica, otherwise a float32 scalar tensor.
    """
    if num_replicas() == 1:
        return 1.0
    local_size = tf.cast(local_size, "float32")
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local_size)
    return tf.math.divide_no_nan(local_size, total)


def sum_over_replicas(values):
    """Adds up tensors over the replicas; as they are where there is one. No gradient flows back.

    Args:
        values: A tensor, or a structure of tensors.
    """
    values = tf.nest.map_structure(tf.stop_gradient, values)
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def draw_per_sample(draw, local_size):
    """Draws random numbers for samples, the same whatever the number of replicas.

    Every replica draws for the whole batch, from generators in the same state, and keeps the rows
    of its own samples.

    Args:
        draw: Function of the number of samples that returns a tensor `(samples, ...)`, drawn
            from a `keras.random.SeedGenerator`.
        local_size: Integer tensor, the number of samples of this replica.

    Returns:
        A tensor `(samples of this replica, ...)`.
    """
    if num_replicas() == 1:
        return draw(local_size)
    context = tf.distribute.get_replica_context()
    sizes = context.all_gather(tf.reshape(local_size, [1]), axis=0)
    before = tf.range(num_replicas()) < context.replica_id_in_sync_group
    start = tf.reduce_sum(tf.where(before, sizes, 0))
    return draw(tf.reduce_sum(sizes))[start : start + local_size]


def gather_batch(values):
    """Concatenates each tensor over the replicas, along the batch; gradients flow back.

    Args:
        values: A structure of tensors `(batch, ...)`; None stays None.

    Returns:
        The same structure of tensors `(global batch, ...)`, as they are where there is one
        replica.
    """
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()

    def gather(value):
        if value is None:
            return None
        # Gathering forgets the static shape, which losses need.
        return tf.ensure_shape(context.all_gather(value, axis=0), [None, *value.shape[1:]])

    return tf.nest.map_structure(gather, values)


def of_one_replica(batch):
    """Returns the part of a distributed batch that the first local replica gets.

    Keras builds a model from a batch added up over the replicas, which fails where they get
    parts of different sizes.

    Args:
        batch: A structure of tensors or of what a distributed data set yields.
    """
    strategy = tf.distribute.get_strategy()
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], batch)


def synchronize_batch_normalization(model):
    """Lets the batch normalizations of a model see the global batch under several replicas.

    Without it each replica normalizes by the statistics of its own part, and N replicas do not
    give what one gives. One device is not affected.

    Args:
        model: A `keras.Model`; changed in place, and only where there are several replicas.
    """
    if num_replicas() > 1:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
