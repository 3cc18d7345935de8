"""Everything about the machine: strategies, precision, XLA, seeds.

The few places where Keras 3 needs help under `tf.distribute` are here and nowhere else.
"""

import functools
import itertools
import threading

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


def even_share(local_size):
    """Returns `1 / n` on each of the `n` replicas that have samples, and 0 on the others.

    What every replica has computed of the global batch adds up to itself by it.

    Args:
        local_size: Integer tensor, the number of samples of this replica.
    """
    if num_replicas() == 1:
        return 1.0
    present = tf.cast(local_size > 0, "float32")
    return tf.math.divide_no_nan(present, sum_over_replicas(present))


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
        A tensor `(samples of this replica, ...)`, of one row where it has no sample.
    """
    if num_replicas() == 1:
        return draw(local_size)
    context = tf.distribute.get_replica_context()
    sizes = context.all_gather(tf.reshape(local_size, [1]), axis=0)
    before = tf.range(num_replicas()) < context.replica_id_in_sync_group
    # A replica without a sample has a row all the same; see `padded_step`.
    total, rows = tf.reduce_sum(sizes), tf.maximum(local_size, 1)
    start = tf.minimum(tf.reduce_sum(tf.where(before, sizes, 0)), total - 1)
    return draw(total)[start : start + rows]


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
        gathered = context.all_gather(samples_of(value), axis=0)
        return tf.ensure_shape(gathered, [None, *value.shape[1:]])

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


# What a replica's thread knows of the step that it takes.
_STEP = threading.local()


def padded_step(step):
    """Lets replicas take a step of which they have no sample.

    A last batch may be smaller than the number of replicas, or be shared out so that some get
    nothing of it. All must take the step, since they meet in it; but not every kernel runs on an
    empty batch (convolutions on a CPU return another shape). So such a replica gets one row of
    zeros, and what counts samples is told by `size_of` and `samples_of` that there is none.

    Args:
        step: Function of a batch, a structure of tensors.

    Returns:
        A function of the same kind.
    """

    @functools.wraps(step)
    def padded(data):
        rows = next(x for x in tf.nest.flatten(data) if x is not None)
        if num_replicas() == 1 or rows.shape.rank is None or rows.shape[0]:
            return step(data)
        missing = tf.cast(tf.shape(rows)[0] == 0, "int32")

        def pad(x):
            if x is None:
                return None
            padding = tf.zeros(tf.concat([[missing], tf.shape(x)[1:]], 0), x.dtype)
            return tf.ensure_shape(tf.concat([x, padding], 0), x.shape)

        _STEP.present = 1 - missing
        try:
            return step(tf.nest.map_structure(pad, data))
        finally:
            _STEP.present = None

    return padded


def _present():
    """1 where this replica has samples in this step and 0 where not; None if it must have some."""
    return getattr(_STEP, "present", None)


def size_of(rows):
    """Returns how many samples this replica has, of the number of rows that its tensors have."""
    return rows if _present() is None else rows * _present()


def samples_of(values):
    """Returns tensors `(rows, ...)` without the row that stands for no sample.

    Args:
        values: A structure of tensors; None stays None.
    """
    if _present() is None:
        return values
    return tf.nest.map_structure(
        lambda x: None if x is None else x[: tf.shape(x)[0] * _present()], values
    )


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
                layer._moments = functools.partial(_synchronized_moments, layer)


def _synchronized_moments(layer, inputs, mask):
    """Mean and variance of the global batch, in place of Keras' own.

    Keras takes the difference of two large numbers for the variance, which one device does not,
    and has a replica that has no sample count its row of zeros.
    """
    context = tf.distribute.get_replica_context()
    if mask is not None or context is None:
        return type(layer)._moments(layer, inputs, mask)
    axes, total = layer._reduction_axes, tf.distribute.ReduceOp.SUM
    present = 1.0 if _present() is None else tf.cast(_present(), inputs.dtype)
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[layer.axis], inputs.dtype)
    count, sums = context.all_reduce(
        total, [count * present, tf.reduce_sum(inputs, axes) * present]
    )
    mean = sums / count
    shape = [1] * len(inputs.shape)
    shape[layer.axis] = mean.shape[0]
    squares = tf.reduce_sum(tf.square(inputs - tf.reshape(mean, shape)), axes)
    return mean, context.all_reduce(total, squares * present) / count
