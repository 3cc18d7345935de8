"""Steps across replicas: scaling, gathering, random draws, distribution of batches."""

import keras
import tensorflow as tf


def num_replicas():
    """Returns the number of replicas of the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def share_of_batch(local_size):
    """Returns the share of the global batch on this replica.

    The means over the replicas' samples, multiplied by their shares, sum up to the mean over the
    global batch, also where a last batch is divided unequally.

    Args:
        local_size: Integer tensor, the number of samples of this replica.

    Returns:
        The number 1.0 where there is one replica, or outside of a replica's step; otherwise a
        float32 scalar tensor.
    """
    if num_replicas() == 1 or tf.distribute.in_cross_replica_context():
        return 1.0
    local_size = tf.cast(local_size, "float32")
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local_size)
    return tf.math.divide_no_nan(local_size, total)


def sum_over_replicas(values):
    """Returns the sums of tensors over the replicas. No gradient flows back.

    Args:
        values: A tensor, or a structure of tensors.
    """
    values = tf.nest.map_structure(tf.stop_gradient, values)
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def assign_on_replicas(variables, values):
    """Assigns to mirrored variables, on each replica its own value.

    A plain assignment in a replica's step averages, or is not allowed.

    Args:
        variables: List of `tf.Variable`s.
        values: List of tensors, the same on all replicas.
    """

    def assign(strategy, values):
        for variable, value in zip(variables, values):
            strategy.extended.update(
                variable, lambda one, own: one.assign(own), args=(value,), group=False
            )

    tf.__internal__.distribute.interim.maybe_merge_call(
        assign, tf.distribute.get_strategy(), values
    )


def assign_rows(variable, positions, rows):
    """Assigns some rows of a variable; on all replicas the rows of the first one.

    Assigning the whole variable would send it from replica to replica in every step.

    Args:
        variable: A Keras variable.
        positions: Integer tensor `(rows,)`. Equal positions must have equal rows.
        rows: Tensor `(rows, ...)`.
    """

    def assign_one(one, positions, rows):
        # Not one.scatter_nd_update: after it TensorFlow copies the whole variable at every read.
        one.assign(tf.tensor_scatter_nd_update(one, positions, rows))

    def assign(strategy, *values):
        first = tuple(strategy.experimental_local_results(value)[0] for value in values)
        strategy.extended.update(variable.value, assign_one, args=first, group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(
        assign, tf.distribute.get_strategy(), positions[:, None], rows
    )


def draw_per_sample(draw, local_size):
    """Draws random numbers for samples that do not depend on the number of replicas.

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
        gathered = context.all_gather(value, axis=0)
        return tf.ensure_shape(gathered, [None, *value.shape[1:]])

    return tf.nest.map_structure(gather, values)


def distribute_batch(batch):
    """Distributes a batch over the replicas, as in training.

    Args:
        batch: A structure of tensors `(batch, ...)`, the same on all workers.

    Returns:
        The tuple `(batch, signature)`; the latter for a `tf.function`, so that all replicas trace
        the same step whatever the sizes of their parts.
    """
    size = _shared(len(tf.nest.flatten(batch)[0]), num_replicas())
    batch = tf.nest.map_structure(lambda part: part[:size], batch)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(size).with_options(options)
    distributed = tf.distribute.get_strategy().experimental_distribute_dataset(dataset)
    return next(iter(distributed)), distributed.element_spec


def of_one_replica(batch):
    """Returns the part of a distributed batch on the first local replica.

    Keras builds a model from a batch summed over the replicas, which fails for parts of different
    sizes.

    Args:
        batch: A structure of tensors or per-replica values.
    """
    strategy = tf.distribute.get_strategy()
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], batch)


#: The error of a step in which a replica has no sample.
NO_SAMPLE = (
    "A training batch is too small to give every replica a sample: batch sizes must be multiples "
    "of the number of replicas, in the last batch too"
)


def check_samples(size):
    """Raises an error in a training step where a replica has no sample; see `share_out`.

    Args:
        size: Integer tensor, the number of this replica's samples.
    """
    if num_replicas() > 1 and not tf.distribute.in_cross_replica_context():
        tf.debugging.assert_positive(size, NO_SAMPLE)


def run_padded(function, inputs):
    """Runs a function on a batch that may be empty on this replica.

    The last batch of an evaluation may be empty on some replicas. All must take the step, since
    they communicate in it, but not every kernel runs on an empty batch (convolutions on a CPU
    return another shape). So one row of zeros replaces the samples and is cut off the outputs.

    Args:
        function: Function of a structure of tensors `(batch, ...)` that returns such a structure.
            It treats samples one by one, as models do in inference mode.
        inputs: The structure of tensors.

    Returns:
        The outputs of the function.
    """
    first = tf.nest.flatten(inputs)[0]
    if num_replicas() == 1 or first.shape[0]:
        return function(inputs)
    size = tf.shape(first)[0]
    missing = tf.cast(size == 0, "int32")

    def pad(x):
        padding = tf.zeros(tf.concat([[missing], tf.shape(x)[1:]], 0), x.dtype)
        return tf.ensure_shape(tf.concat([x, padding], 0), x.shape)

    outputs = function(tf.nest.map_structure(pad, inputs))
    return tf.nest.map_structure(lambda x: x[:size], outputs)


def share_out(x, y, arguments):
    """Resizes training batches so that no replica is without a sample.

    TensorFlow gives each replica `ceil(size / replicas)` samples while there are some: of 6
    samples four replicas get 2, 2, 2 and none, and batch normalization has no statistics of none.
    Such a batch is cut to a multiple of the number of replicas. A batch of a data set that is
    smaller than that number is filled up with its own samples, since the number of batches must
    stay known: Keras runs part of an extra step where it finds the end of data by itself.

    Args:
        x: As `fit` takes it.
        y: As `fit` takes it.
        arguments: Dictionary of the other arguments of `fit`.

    Returns:
        The tuple `(x, y, arguments)`.
    """
    replicas = num_replicas()
    if replicas == 1:
        return x, y, arguments
    if isinstance(x, tf.data.Dataset):
        sizes = {part.shape[0] for part in tf.nest.flatten(x.element_spec) if part.shape.rank}
        if not all(size and _shared(size, replicas) == size for size in sizes):
            x = x.map(lambda *batch: _resized(batch, replicas))
        return x, y, arguments
    parts = keras.tree.flatten((x, y))
    if all(hasattr(part, "shape") for part in parts):
        size, batch_size = len(parts[0]), arguments.get("batch_size") or 32
        remainder = size % batch_size
        kept = size - remainder + int(_shared(remainder, replicas))
        if 0 < kept < size:
            x, y = keras.tree.map_structure(lambda part: part[:kept], (x, y))
            if arguments.get("sample_weight") is not None:
                arguments = {**arguments, "sample_weight": arguments["sample_weight"][:kept]}
    return x, y, arguments


def _shared(size, replicas):
    """Returns the number of samples of a batch that are kept; see `share_out`."""
    most = -(-size // replicas)
    whole = (replicas - 1) * most < size
    even = size // replicas * replicas
    return tf.where(whole, size, even) if tf.is_tensor(size) else (size if whole else even)


def _resized(batch, replicas):
    size = tf.shape(tf.nest.flatten(batch)[0])[0]
    rows = tf.range(tf.maximum(_shared(size, replicas), replicas)) % size
    # A data set of inputs alone has batches that are no tuple.
    batch = batch if len(batch) > 1 else batch[0]
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), batch)
