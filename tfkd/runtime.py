"""Everything about the machine: strategies, precision, XLA, seeds.

The few places where Keras 3 needs help under `tf.distribute` are here and nowhere else.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import tempfile

import keras
import tensorflow as tf

from tfkd.errors import UsageError, unknown

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def strategy(name="auto", replicas=None):
    """Makes the `tf.distribute` strategy to build and train models in.

    Args:
        name: `"one_device"`; `"mirrored"` (every GPU, or logical CPUs); `"multi_worker"` (the
            workers that the environment variable `TF_CONFIG` lists, each with all of its GPUs, or
            its CPU); `"tpu"` (the TPU that the environment variable `TPU_NAME` names, or the one
            that this machine has); or `"auto"`: `multi_worker` where `TF_CONFIG` lists several
            workers, mirrored where there are several GPUs, otherwise one device. Workers must
            make their strategy before TensorFlow does anything else.
        replicas: Integer, the number of devices to mirror over; None for all GPUs. On a machine
            without a GPU the CPU is split into as many logical devices, which must happen
            before TensorFlow first touches it.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        UsageError: If the name is unknown or unsupported, there are not that many devices, or
            `TF_CONFIG` does not describe workers.

    Example:
    ```python
    with tfkd.runtime.strategy("mirrored", replicas=2).scope():
        distiller = tfkd.KnowledgeDistiller(student, teacher, losses=["kd"])
    ```
    """
    if name not in STRATEGIES:
        reason = next((why for kind, why in _UNSUPPORTED.items() if kind in _plain(name)), None)
        if reason is not None:
            raise UsageError(f"Strategy {name!r} is not supported: {reason}; {_INSTEAD}")
        raise unknown("strategy", name, STRATEGIES)
    if replicas is not None and (not isinstance(replicas, int) or replicas < 1):
        raise UsageError(f"replicas must be a whole number of at least 1; received {replicas!r}.")
    if name == "auto" and len(_workers_of_cluster()) > 1:
        name = "multi_worker"
    if name in ("multi_worker", "tpu"):
        if replicas is not None:
            raise UsageError(
                f"replicas={replicas} is for mirrored: strategy {name!r} takes every device that "
                "there is."
            )
        return _multi_worker() if name == "multi_worker" else _tpu()
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


#: Kinds of strategies that cannot train here, by what their names contain, and why.
_UNSUPPORTED = {
    "parameterserver": "Keras 3 does not train under parameter servers",
    "centralstorage": "it is an experiment of TensorFlow's, which Keras 3 is not tested under",
}
_INSTEAD = "use mirrored (one machine) or multi_worker (several)."


def _plain(name):
    return str(name).lower().replace("_", "").replace("-", "")


def check_strategy(strategy):
    """Raises a `UsageError` for a strategy under which distillers cannot train.

    Args:
        strategy: The `tf.distribute.Strategy` in whose scope one is built.
    """
    supported = (
        tf.distribute.OneDeviceStrategy,
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
        tf.distribute.TPUStrategy,
    )
    kind = type(strategy).__name__
    if isinstance(strategy, supported) or "Default" in kind:
        return
    reason = "distillers are tested under one device, mirrored, multi-worker mirrored and TPU"
    reason = next((why for part, why in _UNSUPPORTED.items() if part in _plain(kind)), reason)
    raise UsageError(f"{kind} is not supported: {reason}; {_INSTEAD}")


def check_scope(strategy):
    """Raises a `UsageError` where a distiller is trained in another scope than it was built in.

    Args:
        strategy: The `tf.distribute.Strategy` that it was built in; None for none.
    """
    here = tf.distribute.get_strategy()
    check_strategy(here)
    if here is strategy or not tf.distribute.has_strategy():
        return
    if strategy is not None or here.num_replicas_in_sync > 1:
        there = "no strategy" if strategy is None else type(strategy).__name__
        raise UsageError(
            f"The distiller was built under {there} and is trained in the scope of another "
            f"strategy, {type(here).__name__}: build its models and train it in one scope."
        )


def check_steps_per_execution(steps, strategy):
    """Raises a `UsageError` where Keras' loop over steps fails.

    Args:
        steps: What was given to `compile` as `steps_per_execution`.
        strategy: The `tf.distribute.Strategy` that trains.
    """
    replicas = strategy.num_replicas_in_sync
    if steps != 1 and replicas > 1:
        raise UsageError(
            f"steps_per_execution={steps} fails in Keras under {replicas} replicas: leave it at 1, "
            "or train on one device."
        )


def check_accumulation(name, optimizer, steps, strategy):
    """Raises a `UsageError` for an optimizer that accumulates gradients where it cannot.

    Args:
        name: String, the argument of `compile` that it was given as.
        optimizer: A Keras optimizer.
        steps: Integer, the `accumulation_steps` of the distiller.
        strategy: The `tf.distribute.Strategy` that trains.
    """
    own = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps
    on_one = not isinstance(
        strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    )
    if own and steps > 1:
        raise UsageError(
            f"{name} accumulates over {own} steps and compile(accumulation_steps={steps}) does so "
            "too: give one of them, rather the latter."
        )
    if own and not on_one:
        raise UsageError(
            f"{name} has gradient_accumulation_steps={own}, which fails in Keras under "
            f"{type(strategy).__name__}: use compile(accumulation_steps={own}) instead."
        )


def _workers_of_cluster():
    """Returns the addresses of all workers that `TF_CONFIG` lists, the chief first."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster", {})
        return [*cluster.get("chief", []), *cluster.get("worker", [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"TF_CONFIG is not JSON as TensorFlow wants it ({error}): it must be like "
            f"{_TF_CONFIG_EXAMPLE}."
        ) from error


_TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
)


def _multi_worker():
    workers = _workers_of_cluster()
    if not workers:
        raise UsageError(
            "Strategy 'multi_worker' needs the workers in the environment variable TF_CONFIG, like "
            f"{_TF_CONFIG_EXAMPLE}; to try it out, python -m tfkd.local_workers sets it."
        )
    task = json.loads(os.environ["TF_CONFIG"]).get("task", {})
    if task.get("type") not in ("chief", "worker") or not isinstance(task.get("index"), int):
        raise UsageError(
            f"TF_CONFIG must say which worker this is, like {_TF_CONFIG_EXAMPLE}; its task is "
            f"{task}."
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise UsageError(
            "TensorFlow has already started, and workers must meet before: call "
            f"tfkd.runtime.strategy() before anything else ({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        raise UsageError(f"TF_CONFIG: {str(error).splitlines()[0]}") from error


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UsageError(
            "Strategy 'tpu' found no TPU: set TPU_NAME, or use another strategy "
            f"({str(error).splitlines()[0]})"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


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


# What `set_seed` does where it is not told; the command line sets it once for all runs.
_DETERMINISTIC = [True]


def set_determinism(wanted):
    """Sets whether `set_seed` makes TensorFlow deterministic where it is not told.

    A process in which TensorFlow is deterministic already stays so.

    Args:
        wanted: Boolean.
    """
    _DETERMINISTIC[0] = wanted


def set_seed(seed, deterministic=None):
    """Fixes every source of randomness of this process.

    Args:
        seed: Integer of at least 0.
        deterministic: Whether TensorFlow must use only operations that give the same bits on
            every run on the same machine. Defaults to what `set_determinism` was told last, True
            before.
    """
    keras.utils.set_random_seed(seed)
    if _DETERMINISTIC[0] if deterministic is None else deterministic:
        tf.config.experimental.enable_op_determinism()


def describe_devices():
    """Returns a line on what trains here, and why no GPU where there should be one.

    TensorFlow's own warning is not shown. Call it in the scope of the strategy.

    Returns:
        A string, such as `"devices: 1 CPU (no GPU that TensorFlow can use)"` or
        `"devices: 2 GPUs (NVIDIA H100), 2 replicas, mixed_bfloat16"`.
    """
    kinds = {
        # Those of another machine are logical ones only.
        "TPU": tf.config.list_logical_devices("TPU"),
        "GPU": tf.config.list_physical_devices("GPU"),
        "CPU": tf.config.list_physical_devices("CPU"),
    }
    kind = next(kind for kind, devices in kinds.items() if devices)
    count = len(kinds[kind])
    text = f"{count} {kind}{'s' * (count > 1)}"
    if kind == "CPU":
        text += f" ({_why_no_gpu()})"
    elif kind == "GPU":
        details = tf.config.experimental.get_device_details
        names = dict.fromkeys(details(gpu).get("device_name", "unknown") for gpu in kinds[kind])
        text += f" ({', '.join(names)})"
        used = num_replicas() // workers()
        text += f", {used} of them used" * (used < count)
    if workers() > 1:
        text += f" on each of {workers()} workers"
    if num_replicas() > 1:
        text += f", {num_replicas()} replicas"
    precision = keras.config.dtype_policy().name
    return f"devices: {text}{f', {precision}' * (precision != 'float32')}"


#: What is there where the driver of an NVIDIA GPU is.
_NVIDIA_DRIVER = pathlib.Path("/proc/driver/nvidia/version")


def _why_no_gpu():
    reason = "no GPU that TensorFlow can use"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return f"{reason}: CUDA_VISIBLE_DEVICES hides them"
    if not _NVIDIA_DRIVER.exists():
        return reason
    if not tf.test.is_built_with_cuda():
        return f"{reason}, though there is an NVIDIA driver: this TensorFlow is built without CUDA"
    return (
        f"{reason}, though there is an NVIDIA driver: CUDA's libraries may be missing, which pip "
        "install tensorflow[and-cuda] brings"
    )


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


def needs_whole_gradient(optimizer):
    """Whether an optimizer looks at its gradient before it adds it up over the replicas.

    That is to clip it, or to see whether the scale of a loss made it overflow. Keras shows it one
    replica's.

    Args:
        optimizer: A Keras optimizer.
    """
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return num_replicas() > 1 and (scales or _clips(optimizer))


def _clips(optimizer):
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)


def apply_whole_gradient(optimizer, gradients, variables, scale=1.0):
    """Lets an optimizer take a step on gradients that are those of all replicas already.

    Args:
        optimizer: A Keras optimizer.
        gradients: List of tensors, the same on all replicas.
        variables: List of their variables.
        scale: What the gradients are multiplied by, because the optimizer divides it out again.
    """
    if num_replicas() > 1:
        if _clips(optimizer):
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            clipped = inner._clip_gradients([gradient / scale for gradient in gradients])
            gradients = [scale * gradient for gradient in clipped]
        # It adds them up. What has been clipped once is below the limit then.
        gradients = [gradient / num_replicas() for gradient in gradients]
    optimizer.apply_gradients(zip(gradients, variables))


def assign_on_replicas(variables, values):
    """Assigns to variables of which every replica has one, on each the value that it has.

    Assigning in a replica's step would otherwise average, or is not allowed.

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
    """Assigns some rows of a variable; on all replicas those that the first one has.

    Assigning the variable would send all of it from replica to replica, in every step.

    Args:
        variable: A Keras variable.
        positions: Integer tensor `(rows,)`. One may be there several times, with the same row.
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
        gathered = context.all_gather(value, axis=0)
        return tf.ensure_shape(gathered, [None, *value.shape[1:]])

    return tf.nest.map_structure(gather, values)


#: The first version of Keras whose `fit` and `evaluate` need no help under several workers; None
#: as long as there is none. tests/test_workers.py tells when that changes.
KERAS_TRAINS_WITH_WORKERS_FROM = None


def _keras_needs_help():
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    return KERAS_TRAINS_WITH_WORKERS_FROM is None or version < KERAS_TRAINS_WITH_WORKERS_FROM


def workers(strategy=None):
    """Returns how many processes train together.

    Args:
        strategy: A `tf.distribute.Strategy`; None for that in whose scope this is called.
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief():
    """Whether this process is the one that writes what all workers share."""
    return tf.distribute.get_strategy().extended.should_checkpoint


@contextlib.contextmanager
def chief_first():
    """Lets the chief through first, and the other workers when it is done.

    Example:
    ```python
    with tfkd.runtime.chief_first():
        data = tfkd.data.load("cifar100")  # the chief prepares it, the others find it
    ```
    """
    if not is_chief():
        wait_for_all()
    yield
    if is_chief():
        wait_for_all()


def wait_for_all():
    """Returns when all workers have called it; at once where there is one."""
    if workers() > 1:
        all_gather_int(0)


def all_gather_int(number):
    """Returns a number that each worker has as a list, with one for each of them.

    Args:
        number: Integer.
    """
    if workers() == 1:
        return [number]
    strategy = tf.distribute.get_strategy()
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    position = resolver.task_id + (has_chief and resolver.task_type != "chief")
    row = tf.one_hot(position, workers(), dtype="int64") * number
    return strategy.reduce("SUM", row, axis=None).numpy().tolist()


@contextlib.contextmanager
def folder_of_worker(path):
    """Gives the chief a folder itself, and every other worker a copy, which is deleted at the end.

    So all read the same files, and only the chief writes those that stay. To copy is safe as long
    as the chief builds models, which all do together, before it writes.

    Args:
        path: Path of the folder, which need not exist; None stays None.
    """
    if is_chief() or path is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tfkd-worker-") as folder:
        own = pathlib.Path(folder, pathlib.Path(path).name or "folder")
        if os.path.isdir(path):
            # What is only written needs no copy; a file may vanish as it is looked at.
            ignore = shutil.ignore_patterns("tensorboard", "pictures", "*.partial.*")
            shutil.copytree(path, own, ignore=ignore)
        yield str(own)


def function_of_step(make_function, step, strategy):
    """Makes the function that Keras calls with an iterator, of a step that returns logs.

    Over several workers Keras takes the mean of each log along an axis, which scalars do not have.
    So the logs pass it as one vector, which also saves an exchange for each.

    Args:
        make_function: Keras' own function, of a step.
        step: Function of a batch that returns `{name: scalar}`.
        strategy: The `tf.distribute.Strategy` that runs it.

    Returns:
        A function of an iterator that returns `{name: scalar}`.
    """
    if workers(strategy) == 1 or not _keras_needs_help():
        return make_function(step)
    names = []

    def packed(data):
        logs = step(data)
        names[:] = logs
        return tf.stack([tf.cast(value, "float32") for value in logs.values()])[None]

    run = make_function(packed)
    return lambda iterator: dict(zip(names, tf.unstack(run(iterator), num=len(names))))


def distribute_batch(batch):
    """Returns a batch as replicas get it in training: each a part of it.

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
    """Returns the part of a distributed batch that the first local replica gets.

    Keras builds a model from a batch added up over the replicas, which fails where they get
    parts of different sizes.

    Args:
        batch: A structure of tensors or of what a distributed data set yields.
    """
    strategy = tf.distribute.get_strategy()
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], batch)


#: What a step says that has no samples on one of its replicas.
NO_SAMPLE = (
    "A training batch is too small to give every replica a sample: batch sizes must be multiples "
    "of the number of replicas, in the last batch too"
)


def check_samples(size):
    """Lets a training step fail where a replica has no sample; see `share_out`.

    Args:
        size: Integer tensor, the number of this replica's samples.
    """
    if num_replicas() > 1:
        tf.debugging.assert_positive(size, NO_SAMPLE)


def run_padded(function, inputs):
    """Runs a function of a batch of which this replica may have no sample.

    The last batch of an evaluation may leave replicas without one. All must take the step, since
    they meet in it; but not every kernel runs on an empty batch (convolutions on a CPU return
    another shape). So one row of zeros takes the place of the samples, and is cut off the outputs.

    Args:
        function: Function of a structure of tensors `(batch, ...)` that returns such a structure.
            It treats samples one by one, as models do in inference mode.
        inputs: The structure of tensors.

    Returns:
        What the function returns.
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
    """Brings training batches to sizes that leave no replica without a sample.

    TensorFlow gives each replica `ceil(size / replicas)` samples as long as there are some: of 6
    samples four replicas get 2, 2, 2 and none, and batch normalization has no statistics of none.
    Such a batch is cut to a multiple of the number of replicas. A batch of a data set that is
    smaller than that number is filled up with its own samples, since Keras must know how many
    batches there are: at an end of data that it has to find out, it runs part of a step more.

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
    """Returns how many samples of a batch of some size can be shared out; see above."""
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


def take_activity_losses(model):
    """Returns what activity regularizers and `add_loss` noted in a model's last pass.

    The model forgets it, so that no other pass counts it again.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        A float32 scalar.
    """
    losses = [loss for layer in model._flatten_layers() for loss in layer._get_own_losses()]
    model._clear_losses()
    return sum((tf.cast(loss, "float32") for loss in losses), start=tf.zeros(()))


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
                # Not by its argument `synchronized`, which would be saved with the model.
                layer._moments = functools.partial(_synchronized_moments, layer)


def _synchronized_moments(layer, inputs, mask):
    """Mean and variance of the global batch, in place of Keras' own.

    Keras takes the difference of two large numbers for the variance, which one device does not.
    """
    context = tf.distribute.get_replica_context()
    if mask is not None or context is None:
        return type(layer)._moments(layer, inputs, mask)
    axes, total = layer._reduction_axes, tf.distribute.ReduceOp.SUM
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[layer.axis], inputs.dtype)
    count, sums = context.all_reduce(total, [count, tf.reduce_sum(inputs, axes)])
    mean = sums / count
    shape = [1] * len(inputs.shape)
    shape[layer.axis] = mean.shape[0]
    squares = tf.reduce_sum(tf.square(inputs - tf.reshape(mean, shape)), axes)
    return mean, context.all_reduce(total, squares) / count
