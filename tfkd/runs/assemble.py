"""Builds the data, the models and the distiller that a config describes."""

import contextlib
import pathlib

import keras

from tfkd import distillers, losses, models, optimizers, runtime, taps
from tfkd.config import teacher_paths
from tfkd.errors import UsageError
from tfkd.methods import peers, takes_arguments
from tfkd.runs import work_directory
from tfkd.runs.teacher_images import check_size_of_images, joined_teachers, teacher_preprocessing


def build(config, data, teacher):
    """Returns the compiled distiller of a run, with a new student and new peers.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        teacher: `keras.Model`; None for methods without one.

    Raises:
        UsageError: If the method's arguments or the models do not fit.
    """
    # The random numbers drawn so far depend on whether the teacher existed already.
    runtime.set_seed(config.seed)
    kinds = {config.student.model: config.student.arguments}
    student, *others = (
        # Spaces seeds so that peers never share initial weights with another run.
        create_model(kind, data, config.seed + 1000 * position, kinds.get(kind, {}))
        for position, kind in enumerate([config.student.model, *peers(config)])
    )
    if config.student.weights:
        begin_with(student, config.student.weights)
    distiller = make_distiller(config, data, student, teacher, others)
    compile_distiller(
        distiller,
        config,
        data,
        config.epochs,
        config.optimizer.learning_rate,
        config.label_smoothing,
    )
    return distiller


def load_data(config):
    """Loads the data of a run; the chief prepares it, the other workers find it."""
    with runtime.chief_first():
        return work_directory.load_data(config)


def create_model(name, data, seed, arguments):
    """Makes a model for the images and classes of a data set.

    Args:
        name: String, as `tfkd.models.named` takes it.
        data: A `tfkd.data.Data`.
        seed: Integer.
        arguments: Dictionary of further arguments.
    """
    return models.named(
        name, data.num_classes, data.input_shape, seed, data.mean, data.std, **arguments
    )


def begin_with(student, path):
    """Gives a new student the weights of a saved one.

    Args:
        student: `keras.Model`.
        path: String, the path of a `.keras` file.

    Raises:
        UsageError: If there is no such file, or it holds a model of another kind.
    """
    if not pathlib.Path(path).exists():
        raise UsageError(f"--config.student.weights={path}: there is no such file.")
    saved = models.load(path).get_weights()
    shapes = [[array.shape for array in arrays] for arrays in (saved, student.get_weights())]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"--config.student.weights={path} is no {student.name!r} of these images and classes: "
            "it must be a saved model of the student's own kind."
        )
    student.set_weights(saved)


def get_teacher(config, data, workdir):
    """Returns the teacher: the one used here before, the given one, or one to be trained.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        workdir: Path of the work directory; None where there is none.

    Raises:
        UsageError: If a given file is missing, or holds no model of one output.
    """
    own = workdir and workdir / "teacher.keras"
    models.import_definitions(config.teacher.model)
    if own and own.exists():
        # It has been saved in its precision, and several teachers as one.
        return _load_teacher(own, "remove it, and the same command makes it again")
    paths = teacher_paths(config)
    for path in paths:
        if not path.exists():
            raise UsageError(f"Teacher {path} does not exist: train one, or correct the path.")
    given = [_in_precision(_load_teacher(path), config.teacher.precision, path) for path in paths]
    if given:
        return given[0] if len(given) == 1 else joined_teachers(config, data, given)
    # Another seed than the student's, or two models of one kind would start equal.
    teacher = create_model(
        config.teacher.model, data, config.seed + 1, config.teacher.get("arguments", {})
    )
    return _in_precision(teacher, config.teacher.precision, config.teacher.model)


def _load_teacher(path, remedy="give a whole .keras file"):
    try:
        teacher = models.load(path, remedy)
    except UsageError as error:
        raise UsageError(f"Teacher {error}") from error
    if len(teacher.outputs) != 1:
        raise UsageError(
            f"Teacher {path} has {len(teacher.outputs)} outputs: it must have one, the logits."
        )
    return teacher


def _in_precision(model, precision, source):
    """Returns a model with the same weights that computes in another precision."""
    layers = runtime.all_layers(model)[1:]
    if precision is None or {layer.dtype_policy.name for layer in layers} == {precision}:
        return model

    def convert(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": precision})

    try:
        converted = keras.models.clone_model(model, clone_function=convert, recursive=True)
    except ValueError as error:
        raise UsageError(
            f"Teacher {source} is subclassed, and cannot be converted: save it in {precision}, or "
            "leave out --config.teacher.precision."
        ) from error
    converted.set_weights(model.get_weights())
    return converted


def cache_teacher(config, data, distiller, workdir):
    """Returns data whose training batches carry the outputs of the teacher's last layers.

    They are vectors: the logits, and the pooled features where the teacher has such a tap; of
    several teachers the logits of each. They are cached in the directory of the (first) teacher's
    file, for all runs with that file.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        distiller: The run's, with its trained teacher.
        workdir: Path of the work directory, for a teacher without a file; None caches its outputs
            in memory.

    Returns:
        A `tfkd.data.Data`; `data` itself where the config asks for no cache, or the method has no
        teacher.
    """
    if not config.teacher.cache or distiller.teacher is None:
        return data
    names = [taps.LOGITS]
    for spots in ("pooled", taps.TEACHERS):
        with contextlib.suppress(UsageError):
            names += taps.at_spots(distiller.teacher, spots)
    paths = teacher_paths(config)
    directory = paths[0].parent if paths else workdir
    path = directory and directory / "teacher_outputs"
    return data.cache_teacher(distiller.teacher, names, path, distiller.teacher_inputs)


def compile_distiller(distiller, config, data, epochs, learning_rate, label_smoothing=0.0):
    """Compiles a distiller with the optimizers, the schedule and the loss of a config.

    Labels of students are smoothed alone: smooth ones make a teacher that teaches less.
    """
    rate = schedule(config, data, distiller, epochs, learning_rate)
    values = {**config.optimizer.to_dict(), "learning_rate": rate}
    settings = {name: values[name] for name in optimizers.OF_STUDENTS[values["name"]]}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if data.one_hot:
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        )
    own = config.method.optimizers.to_dict() if distiller.extra_optimizers else {}
    distiller.compile(
        optimizers.create(values["name"], **settings),
        loss=loss,
        metrics=["accuracy"],
        accumulation_steps=config.accumulation_steps,
        **own,
    )


def schedule(config, data, distiller, epochs, learning_rate):
    """Returns the learning rate of a run, a number or a schedule of `optimizer_steps` steps."""
    steps = optimizer_steps(config, data, distiller, epochs)
    return optimizers.schedule(
        learning_rate=learning_rate, steps=steps, **config.schedule.to_dict()
    )


def optimizer_steps(config, data, distiller, epochs):
    """Returns how many steps the student's optimizer takes in some epochs."""
    steps = epochs * data.steps_per_epoch * distiller.student_steps
    return max(1, steps // config.accumulation_steps)


def make_distiller(config, data, student, teacher=None, others=()):
    """Builds the distiller that `config.method` describes.

    Args:
        config: `ConfigDict` of a run.
        data: The `tfkd.data.Data` that it will train on.
        student: `keras.Model`.
        teacher: `keras.Model`; None where the method has none.
        others: List of `keras.Model`s of the kinds that `peers` names.

    Returns:
        A `tfkd.Distiller`, not yet compiled.
    """
    chosen = [
        losses.get(identifier, **arguments)
        for identifier, arguments in config.method.losses.to_dict().items()
    ]
    for loss in chosen:
        if loss.needs_indices:
            loss.set_examples(data.train_labels())
    arguments = config.method.arguments.to_dict()
    cls = distillers.KnowledgeDistiller
    if config.method.distiller is not None:
        cls = distillers.available()[config.method.distiller]
    if "losses" in takes_arguments(cls):
        arguments["losses"] = chosen
    if cls.needs_image_range:
        arguments |= {"image_mean": data.mean, "image_std": data.std}
    if cls.takes_students:
        arguments.pop("peers")
        return cls([student, *others], **arguments)
    preprocessing = teacher_preprocessing(config, data, teacher)
    if len(teacher_paths(config)) < 2:
        check_size_of_images(config, student, teacher)
    if preprocessing is not None:
        arguments["teacher_preprocessing"] = preprocessing
    return cls(student, teacher, **arguments)
