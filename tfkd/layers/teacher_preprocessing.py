"""TeacherPreprocessing: turns the student's images into those that the teacher was trained on."""

import keras
import numpy as np
from keras import layers, ops

from tfkd.errors import UsageError, check_positive


@keras.saving.register_keras_serializable(package="tfkd")
class TeacherPreprocessing(layers.Layer):
    """Turns the student's batch of images into the teacher's: values, channels, size.

    `pixels = images · student_std + student_mean` are the images before the student's
    normalisation, in [0, 1]; the teacher gets `(scale · pixels − mean) / std`, its channels
    repeated to `channels` and resized to `size`. Every step that is not asked for is left out.

    Hand it to a distiller as `teacher_preprocessing`. It has no weights.

    Args:
        size: Integer or pair `(height, width)` that the teacher takes; None keeps the size.
            Resizing is bilinear, with antialiasing where the image becomes smaller, and equals
            that of `tf.image.resize(..., antialias=True)`.
        mean: Number, or one per channel, in the units that the teacher takes: [0, `scale`].
            Subtracted; None subtracts nothing.
        std: Number, or one per channel, in the same units, by which is then divided; None
            divides by nothing.
        student_mean: Number, or one per channel, in [0, 1]: what was subtracted from the
            student's images (`data.mean` of `tfkd.data.load`).
        student_std: Number, or one per channel: what the student's images were divided by
            (`data.std`).
        scale: Number, the white of the teacher's images: 255 for models that take raw pixels, as
            those of `keras.applications` with their preprocessing inside do. Defaults to 1.
        channels: Integer, the channels that the teacher takes, where the student's images have
            one, which is repeated. None keeps the channels.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape: `(batch, height, width, channels)`.
    Output shape: the same with the teacher's size and channels; float32.

    Raises:
        UsageError: If an argument is none of the above; when it is called, if the numbers of
            channels do not fit.

    Example:
    ```python
    imagenet = tfkd.layers.TeacherPreprocessing(
        size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        student_mean=data.mean,
        student_std=data.std,
    )
    distiller = tfkd.KnowledgeDistiller(student, teacher, teacher_preprocessing=imagenet)
    ```
    """

    def __init__(
        self,
        size=None,
        mean=None,
        std=None,
        student_mean=None,
        student_std=None,
        scale=1.0,
        channels=None,
        dtype="float32",
        **kwargs,
    ):
        # float32 whatever the global policy: in half precision raw pixels lose their last bits.
        super().__init__(dtype=dtype, **kwargs)
        check_positive("scale", scale)
        self.size = _size(size)
        self.mean, self.std = _numbers("mean", mean), _numbers("std", std)
        self.student_mean = _numbers("student_mean", student_mean)
        self.student_std = _numbers("student_std", student_std)
        self.scale = scale
        if channels is not None:
            check_positive("channels", channels)
        self.channels = channels

    def call(self, inputs):
        """Returns the teacher's images; see the class."""
        if len(inputs.shape) != 4:
            raise UsageError(
                "TeacherPreprocessing takes images (batch, height, width, channels); received "
                f"shape {tuple(inputs.shape)}."
            )
        images = inputs
        if self.channels not in (None, images.shape[-1]):
            if images.shape[-1] != 1:
                raise UsageError(
                    f"TeacherPreprocessing can repeat one channel to {self.channels}; the "
                    f"student's images have {images.shape[-1]}."
                )
            images = ops.repeat(images, self.channels, axis=-1)
        gain, offset = self._affine(images.shape[-1])
        if np.any(gain != 1) or np.any(offset != 0):
            images = images * gain.astype("float32") + offset.astype("float32")
        return images if self.size is None else _resize(images, self.size)

    def _affine(self, channels):
        """Returns the factor and the offset that combine all changes of value."""
        names = ("student_mean", "student_std", "mean", "std")
        values = {}
        for name, default in zip(names, (0.0, 1.0, 0.0, 1.0)):
            value = getattr(self, name)
            values[name] = np.asarray(default if value is None else value, "float64")
            if values[name].size not in (1, channels):
                raise UsageError(
                    f"TeacherPreprocessing: {name}={value!r} needs one number, or one for each of "
                    f"the {channels} channels."
                )
        gain = values["student_std"] * self.scale / values["std"]
        offset = (values["student_mean"] * self.scale - values["mean"]) / values["std"]
        return gain, offset

    def compute_output_shape(self, input_shape):
        """Returns `(batch, height, width, channels)` of the teacher's images."""
        batch, *size, channels = input_shape
        return (batch, *(self.size or size), self.channels or channels)

    def get_config(self):
        """Returns what `from_config()` needs to make an equal layer."""
        names = ("size", "mean", "std", "student_mean", "student_std", "scale", "channels")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _size(size):
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair)
    if len(pair) != 2 or not whole:
        raise UsageError(
            f"size must be a positive whole number or a pair (height, width); received {size!r}."
        )
    return pair


def _numbers(name, value):
    """Returns a number, or a tuple of one per channel, that is finite and usable."""
    if value is None:
        return None
    try:
        array = np.asarray(value, "float64")
        allowed = array.ndim <= 1 and array.size > 0 and np.all(np.isfinite(array))
        allowed = allowed and not (name.endswith("std") and np.any(array <= 0))
    except (TypeError, ValueError):
        allowed = False
    if not allowed:
        positive = "positive " if name.endswith("std") else ""
        raise UsageError(
            f"{name} must be a {positive}number, or one per channel; received {value!r}."
        )
    return array.item() if array.ndim == 0 else tuple(array.tolist())


def _resize(images, size):
    """Resizes bilinearly with antialiasing, as two products with constant matrices.

    TensorFlow's own operation does not compile with XLA, so not in a training step on a GPU or
    TPU. It remains for images whose size is only known when they come.
    """
    if None in images.shape[1:3]:
        return ops.image.resize(
            images, size, interpolation="bilinear", antialias=True, data_format="channels_last"
        )
    for axis, equation in ((0, "oi,bijc->bojc"), (1, "oj,bijc->bioc")):
        if images.shape[1 + axis] != size[axis]:
            matrix = _resize_matrix(images.shape[1 + axis], size[axis])
            images = ops.einsum(equation, matrix, images)
    return images


def _resize_matrix(source, target):
    """Weights `(target, source)` of the triangle filter of tf.image.resize along one axis."""
    ratio = source / target
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    distances = np.abs(np.arange(source)[None, :] - centres[:, None])
    weights = np.maximum(0.0, 1.0 - distances / max(ratio, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
