"""Devices: `tf.distribute` strategies, precision, XLA, determinism and seeds."""

import itertools
import json
import os
import pathlib
import re

import keras
import tensorflow as tf

from tfkd.errors import UsageError, check_number, check_one_of, unknown
from tfkd.runtime.cluster import workers
from tfkd.runtime.replicas import num_replicas

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def strategy(name="auto", replicas=None):
    """Makes the `tf.distribute` strategy to build and train models in.

    Args:
        name: `"one_device"`; `"mirrored"` (every GPU, or logical CPUs); `"multi_worker"` (the
            workers that the environment variable `TF_CONFIG` lists, each with all of its GPUs, or
            its CPU); `"tpu"` (the TPU of the environment variable `TPU_NAME`, or the one of this
            machine); or `"auto"`: `multi_worker` where `TF_CONFIG` lists several
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
    if replicas is not None:
        check_number("replicas", replicas, "a whole number of at least 1", lambda x: x > 0, int)
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
        # On a CPU TensorFlow's default: OneDeviceStrategy would copy all batches to where they are,
        # which takes longer than a pass over a small data set.
        return tf.distribute.OneDeviceStrategy("GPU:0") if gpus else tf.distribute.get_strategy()
    if gpus:
        if (replicas or 1) > len(gpus):
            raise UsageError(f"replicas={replicas}, but this machine has {len(gpus)} GPU(s).")
        return _mirrored([gpu.name for gpu in gpus[:replicas]])
    return _mirrored(_logical_cpus(replicas or 1))


#: Unsupported strategies, by a part of their names, and why.
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
    """Raises a `UsageError` unless a distiller is trained in the scope that it was built in.

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

    TensorFlow numbers groups of devices from the same start for each strategy, and a second
    strategy over another number of devices then fails with "joining a group with size ...".
    """
    key_base = next(_STRATEGIES_MADE) * 1000
    kind = tf.distribute.MirroredStrategy
    return type(kind.__name__, (kind,), {"_collective_key_base": key_base})(devices)


def _logical_cpus(count):
    """Returns the names of `count` logical CPU devices; splits the CPU where needed."""
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
        name: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`; or `"auto"`: mixed_bfloat16
            where the devices compute in it (CPUs with AVX512-BF16 or AMX, NVIDIA GPUs from Ampere
            on, TPUs), otherwise float32.

    Returns:
        The name of the policy.

    Raises:
        UsageError: If the name is unknown.
    """
    check_one_of("precision", name, ("auto", *PRECISIONS))
    if name == "auto":
        name = "mixed_bfloat16" if _computes_in_bfloat16() else "float32"
    keras.config.set_dtype_policy(name)
    return name


#: On Linux, what the CPU can do.
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def _computes_in_bfloat16():
    """Whether the devices have bfloat16 in hardware."""
    if tf.config.list_logical_devices("TPU"):
        return True
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
        return all(one.get("compute_capability", (0, 0)) >= (8, 0) for one in details)
    if not _CPU_INFO.exists():
        return False
    flags = re.search(r"^flags\s*:(.*)$", _CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


# The default of `set_seed`; the command line sets it once for all runs.
_DETERMINISTIC = [True]


def set_determinism(wanted):
    """Sets whether `set_seed` makes TensorFlow deterministic by default.

    Determinism cannot be switched off again in a process.

    Args:
        wanted: Boolean.
    """
    _DETERMINISTIC[0] = wanted


def set_seed(seed, deterministic=None):
    """Seeds every random generator of this process.

    Args:
        seed: Integer of at least 0.
        deterministic: Whether TensorFlow must use only operations that give the same bits on
            every run on the same machine. Defaults to the last value of `set_determinism`, or
            True.
    """
    keras.utils.set_random_seed(seed)
    if _DETERMINISTIC[0] if deterministic is None else deterministic:
        tf.config.experimental.enable_op_determinism()


def for_any_batch(function, **arguments):
    """Compiles a function of a batch, once for all sizes of batches.

    `tf.function` would trace it for the first batch, and again for a smaller last one.

    Args:
        function: Function of a structure of tensors `(batch, ...)`.
        **arguments: As `tf.function` takes them.

    Returns:
        A function like it.
    """
    # Without AutoGraph, as Keras traces its steps: rewriting code takes longer than tracing it.
    compiled = tf.function(function, reduce_retracing=True, autograph=False, **arguments)
    traced = []

    def run(batch):
        if not traced:
            traced.append(
                compiled.get_concrete_function(
                    tf.nest.map_structure(
                        lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), batch
                    )
                )
            )
        return compiled(batch)

    return run


def describe_devices():
    """Returns a line that names the devices in use, and why there is no GPU.

    It replaces TensorFlow's own warning. Call it in the scope of the strategy.

    Returns:
        A string, such as `"devices: 1 CPU (no GPU that TensorFlow can use)"` or
        `"devices: 2 GPUs (NVIDIA H100), 2 replicas, mixed_bfloat16"`.
    """
    kinds = {
        # TPUs of another machine are logical devices only.
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


#: This file exists where the driver of an NVIDIA GPU is installed.
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
    """Whether to compile a training step with XLA, by what is faster on the device.

    XLA halves the speed of convolutions on a CPU. As in Keras it is off under several replicas.
    """
    return bool(tf.config.list_physical_devices("GPU")) and num_replicas() == 1
