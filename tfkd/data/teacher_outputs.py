"""Teacher outputs that are computed once and travel with the training images."""

import hashlib
import pathlib

import numpy as np
import tensorflow as tf

from tfkd import files, runtime, taps
from tfkd.errors import UsageError, check_one_of

#: The precisions of stored outputs.
DTYPES = ("float32", "float16")


class TeacherOutputs:
    """Outputs of a teacher on every view of every training example.

    Args:
        arrays: `{tap: array (views, examples, ...)}`; memory-mapped ones are read row by row.
    """

    def __init__(self, arrays):
        self.arrays = arrays

    def read(self, view, index):
        """Returns the outputs for some examples, inside of a `tf.data` pipeline.

        Args:
            view: Integer tensor, which view of the examples.
            index: Integer tensor `(batch,)`, their positions in the training set.

        Returns:
            `{tap: float32 tensor (batch, ...)}`.
        """

        def rows(view, index):
            return [np.asarray(array[view][index], "float32") for array in self.arrays.values()]

        found = tf.numpy_function(rows, [view, index], [tf.float32] * len(self.arrays))
        return {
            tap: tf.ensure_shape(values, [*index.shape, *array.shape[2:]])
            for (tap, array), values in zip(self.arrays.items(), found)
        }


def given(outputs, examples, views):
    """Returns `TeacherOutputs` of arrays that come from elsewhere, the same for every view.

    Args:
        outputs: `{tap: array (examples, ...)}`; or an array of logits `(examples, classes)`; or
            the path of an `.npz` file of such arrays; or a list of these, of several teachers.
        examples: Integer, the size of the training set.
        views: Integer, the number of views.

    Raises:
        UsageError: If they do not fit the training set, or are not finite.
    """
    teachers = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    if not teachers:
        raise UsageError("Teacher outputs of no teacher: give at least one array.")
    teachers = [_arrays(one) for one in teachers]
    for arrays in teachers:
        if arrays.keys() != teachers[0].keys():
            raise UsageError(
                f"The teachers' outputs have other taps: {', '.join(teachers[0])} and "
                f"{', '.join(arrays)}."
            )
        for tap, array in arrays.items():
            if array.ndim < 2 or len(array) != examples:
                raise UsageError(
                    f"Teacher outputs {tap!r} have shape {array.shape}: there must be one row for "
                    f"each of the {examples} training examples, in the order of the training set."
                )
            if array.shape != teachers[0][tap].shape:
                raise UsageError(
                    f"Teacher outputs {tap!r} have shapes {teachers[0][tap].shape} and "
                    f"{array.shape}: those of several teachers must be alike."
                )
            if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
                raise UsageError(f"Teacher outputs {tap!r} must be floats, all of them finite.")
    means = {tap: _mean(tap, [arrays[tap] for arrays in teachers]) for tap in teachers[0]}
    return TeacherOutputs(
        {tap: np.broadcast_to(mean, (views, *mean.shape)) for tap, mean in means.items()}
    )


def _arrays(outputs):
    """Returns one teacher's outputs as `{tap: array}`."""
    if isinstance(outputs, (str, pathlib.Path)):
        try:
            loaded = np.load(outputs)
            if isinstance(loaded, np.ndarray):
                return {taps.LOGITS: loaded}
            loaded.close()
            return files.read_arrays(outputs)
        except Exception as error:
            # The reader of arrays raises many kinds of exceptions.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UsageError(
                f"Teacher outputs {outputs} cannot be read as an .npz file of arrays ({reason})."
            ) from error
    if not isinstance(outputs, dict):
        outputs = {taps.LOGITS: outputs}
    return {tap: np.asarray(array) for tap, array in outputs.items()}


def _mean(tap, arrays):
    """Returns the mean of several teachers: of logits, the logarithm of the mean prediction."""
    if len(arrays) == 1:
        return arrays[0]
    if tap != taps.LOGITS:
        return np.mean(arrays, axis=0)
    logits = tf.stack([tf.cast(array, "float32") for array in arrays])
    mean = tf.reduce_logsumexp(tf.nn.log_softmax(logits), 0) - np.log(len(arrays))
    return mean.numpy()


def compute(teacher, names, views, examples, path, dtype, limit, prepare, labels):
    """Returns the outputs of a teacher on all views, from a file where they are there already.

    Args:
        teacher: `keras.Model`.
        names: Iterable of taps.
        views: Function of the number of a view that returns its batches of inputs, in order.
        examples: The tuple `(views, examples)`, the numbers of both.
        path: Path of a folder to keep them in; None keeps them in memory.
        dtype: `"float32"` or `"float16"`.
        limit: Integer, the most bytes they may take.
        prepare: Function from a batch of inputs to the teacher's; None for the identity.
        labels: Integer array `(examples,)`, for the digest.

    Raises:
        UsageError: If they take more than `limit` bytes, or what is in the folder is damaged.
    """
    check_one_of("dtype", dtype, DTYPES)
    prepare = prepare or (lambda inputs: inputs)
    observe = taps.extractor(teacher, [name for name in names if name != taps.LOGITS])

    def observed(inputs):
        with runtime.batch_normalization_of(teacher, jit_compile=runtime.jit_compile()):
            found = observe(prepare(inputs), training=False)
        return {name: tf.cast(found[name], "float32") for name in names}

    run = runtime.for_any_batch(observed, jit_compile=runtime.jit_compile())
    first = next(iter(views(0)))
    # Where the outputs are there already, the teacher is not even traced.
    of_taps = taps.shapes(observe, first.shape, prepare)
    shapes = {name: (*examples, *of_taps[name][1:]) for name in names}
    bytes_ = sum(int(np.prod(shape)) for shape in shapes.values()) * np.dtype(dtype).itemsize
    described = (
        f"{', '.join(shapes)} of {examples[0]} view{'s' * (examples[0] > 1)} of {examples[1]:,} "
        f"images, {bytes_ / 2**20:,.1f} MiB"
    )
    if bytes_ > limit:
        raise UsageError(
            f"Teacher outputs would take more than limit={limit / 2**20:,.0f} MiB ({described}): "
            "cache fewer taps or views, or raise the limit."
        )

    def fill(arrays):
        for view in range(examples[0]):
            start = 0
            for inputs in views(view):
                for name, values in run(inputs).items():
                    arrays[name][view, start : start + len(values)] = values.numpy()
                start += len(inputs)

    if path is None:
        arrays = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
        fill(arrays)
        return TeacherOutputs(arrays)

    def save(folder):
        folder.mkdir()
        arrays = {
            name: np.lib.format.open_memmap(folder / file, "w+", dtype, shapes[name])
            for name, file in named.items()
        }
        fill(arrays)
        for array in arrays.values():
            array.flush()

    named = {name: f"{name.replace('/', '--')}.npy" for name in shapes}
    folder = pathlib.Path(path) / _digest(teacher, prepare(first), first, labels, shapes, dtype)
    with runtime.chief_first():
        if not folder.exists():
            if runtime.is_chief():
                print(f"teacher outputs: {described}, in {folder}", flush=True)
            files.write(folder, save)
    try:
        arrays = {name: np.load(folder / file, mmap_mode="r") for name, file in named.items()}
        right = all(
            arrays[name].shape == shape and arrays[name].dtype == dtype
            for name, shape in shapes.items()
        )
    except Exception:  # Damaged files fail in many ways.
        right = False
    if not right:
        raise UsageError(f"{folder} is damaged: remove it, and the same call writes it again.")
    return TeacherOutputs(arrays)


def _digest(teacher, prepared, inputs, labels, shapes, dtype):
    """Returns a digest of weights, precision, labels, views, and a first batch of images.

    Those of another teacher, preprocessing, augmentation or data set have another one.
    """
    policies = [layer.dtype_policy.name for layer in runtime.all_layers(teacher)]
    digest = hashlib.sha256(repr((shapes, dtype, policies)).encode())
    for array in (*teacher.get_weights(), inputs, prepared, labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
