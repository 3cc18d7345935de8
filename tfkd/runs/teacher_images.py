"""The images that a given teacher takes, made of the student's."""

from tfkd import layers, models
from tfkd.config import teacher_paths
from tfkd.errors import UsageError
from tfkd.methods import TEACHER_IMAGE_KEYS


def teacher_preprocessing(config, data, teacher):
    """Returns the layer that turns the student's images into the teacher's.

    Args:
        config: `ConfigDict` of a run.
        data: The `tfkd.data.Data`, whose normalisation is undone where the teacher has its own.
        teacher: `keras.Model`, for its number of channels; or None.

    Returns:
        A `tfkd.layers.TeacherPreprocessing`, or None where the config asks for nothing, or there
        are several teachers, which have theirs inside.
    """
    if teacher is None or not _asked(config) or len(teacher_paths(config)) > 1:
        return None
    return _layer(config, data, teacher, config.teacher.image_size)


def joined_teachers(config, data, teachers):
    """Joins several given teachers; each gets images of its own size and number of channels.

    Args:
        config: `ConfigDict` of a run, whose mean, std and scale hold for all of them.
        data: The `tfkd.data.Data`.
        teachers: List of `keras.Model`.

    Returns:
        A `tfkd.models.ensemble` of the student's images.
    """
    preprocessing = []
    for teacher in teachers:
        _, height, width, channels = teacher.input_shape
        size = None if None in (height, width) else (height, width)
        differs = (*(size or data.input_shape[:2]), channels) != tuple(data.input_shape)
        size = config.teacher.image_size or size
        needed = _asked(config) or differs
        preprocessing.append(_layer(config, data, teacher, size) if needed else None)
    return models.ensemble(teachers, preprocessing, input_shape=data.input_shape)


def _asked(config):
    # A run of before has no such value as is new.
    return any(config.teacher.get(name) is not None for name in TEACHER_IMAGE_KEYS)


def _layer(config, data, teacher, size):
    mean, std, scale = (config.teacher[name] for name in ("mean", "std", "scale"))
    own_values = (mean, std, scale) != (None,) * 3
    return layers.TeacherPreprocessing(
        size=size,
        mean=mean,
        std=std,
        scale=1.0 if scale is None else scale,
        student_mean=data.mean if own_values else None,
        student_std=data.std if own_values else None,
        channels=teacher.input_shape[-1],
    )


def check_size_of_images(config, student, teacher):
    """Raises a `UsageError` where images must be resized for the teacher, with the flag for it."""
    shapes = [getattr(model, "input_shape", None) for model in (student, teacher)]
    if not all(isinstance(shape, tuple) and len(shape) == 4 for shape in shapes):
        return
    (_, *given), (_, *wanted) = shapes
    set_to = config.teacher.image_size
    if set_to is not None:
        given = [set_to, set_to, wanted[-1]]
    if wanted[0] != wanted[1] or all(b is None or a == b for a, b in zip(given, wanted)):
        return
    if shapes[0][-1] not in (1, wanted[-1]):
        return  # Only one channel can become another number of them.
    size = wanted[0] or given[0]
    made = f", and --config.teacher.image_size={set_to} makes" if set_to else ", the student"
    raise UsageError(
        f"Teacher {config.teacher.path or config.teacher.model} takes images of "
        f"{_by(wanted)}{made} {_by(given)}: set --config.teacher.image_size={size}, and where "
        "values are normalised otherwise --config.teacher.mean, .std and .scale too."
    )


def _by(shape):
    return "x".join("any" if size is None else str(size) for size in shape)
