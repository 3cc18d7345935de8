"""One run: config -> teacher -> distiller -> fit -> artefacts in a work directory."""

import copy
import csv
import hashlib
import io
import json
import os
import pathlib
import sys
import time
import zlib

import keras
import tensorflow as tf

from tfkd import (
    callbacks,
    checkpoint,
    diagnostics,
    measure,
    models,
    optimizers,
    plots,
    runtime,
    work_directory,
)
from tfkd.config import ALONE, check, flatten, make_distiller, needs_indices, needs_teacher, peers
from tfkd.distillers import Distiller, KnowledgeDistiller
from tfkd.distillers.preparation import Preparation
from tfkd.errors import DivergenceError, UsageError

# Values of the config that change nothing in training: a run may go on with others.
_LOOKING = ("diagnostics",)

# How the names of logs end that tell a time. No two runs agree in them: they are in the summary,
# and metrics.csv has what a resumed run repeats to the last digit.
_SECONDS = "_seconds"

# What a run would overwrite.
_ARTEFACTS = ("teacher.keras", "student.keras", "metrics.csv", "checkpoint.npz", "summary.json")


def run(config, workdir, data_dir=None, command=None):
    """Trains a teacher where none is given, distils a student and writes what came of it.

    The same call again resumes where it was interrupted, and returns at once when the run is
    complete.

    Args:
        config: `ConfigDict`, as the files in `configs/` make it.
        workdir: Path of the work directory; it is made if need be.
        data_dir: Where TFDS keeps its data sets; None for its default.
        command: String, the command that was run, for the summary.

    Returns:
        The summary, a dictionary; also in `summary.json`.

    Raises:
        UsageError: If something in the config is wrong, or the work directory belongs to a run
            of another config.
    """
    workdir = pathlib.Path(workdir)
    check(config)
    check_writable(workdir)
    check_same_config(config, workdir)
    _check_same_files(workdir)
    finished = workdir / "summary.json"
    if finished.exists():
        _say(f"{workdir} holds this run, complete.")
        try:
            return json.loads(finished.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(
                f"{finished} is damaged: remove it, and the same command writes it anew."
            ) from error
    checkpoint.remove_partial(workdir)

    runtime.set_seed(config.seed)
    data = _load_data(config, data_dir)
    work_directory.check_class_names(workdir, data)
    # Everything is built before anything is trained: a mistake in the method shows at once.
    teacher = get_teacher(config, data, workdir) if needs_teacher(config.method) else None
    distiller = build(config, data, teacher)
    student = distiller.student
    if not (workdir / "config.json").exists():
        checkpoint.write_text(workdir / "config.json", as_json(config))
    work_directory.write_class_names(workdir / "class_names.txt", data.class_names)

    summary = {"command": command, "config": json.loads(as_json(config)), "data": data.sizes}
    if teacher is not None:
        train_teacher(config, data, teacher, workdir)
        summary["teacher"] = {
            **measure.cost(teacher, data, workdir / "teacher.keras", distiller.teacher_inputs),
            "test_accuracy": _teacher_accuracy(teacher, data, distiller),
        }
    if config.check and config.method.name != ALONE:
        report = distiller.check(data.validation or data.train)
        _say(report)
        summary["check"] = report.as_dict()
    _say(f"student {config.student.model} ({student.count_params():,} parameters)")
    measuring = [_diagnostics(config, data)] if config.diagnostics else []
    progress = fit(
        distiller,
        config,
        data,
        config.epochs,
        workdir,
        config.method.preparation_epochs,
        measuring=measuring,
    )
    history = progress.history
    summary["training_seconds"] = round(progress.seconds, 1)

    summary |= _test(config, data, distiller, progress, workdir)
    histories = {"student": history}
    for name in distiller.learners():
        keys = {"accuracy": f"{name}_accuracy", "val_accuracy": f"val_{name}_accuracy"}
        histories[name] = [
            {key: epoch[source] for key, source in keys.items() if source in epoch}
            for epoch in history
        ]
    pictures = {"curves.png": lambda path: plots.curves(path, histories)}
    summary |= {
        name.removesuffix(_SECONDS): {
            "seconds": round(seconds, 1),
            "share_of_training": round(seconds / progress.seconds, 4),
        }
        for name, seconds in _seconds(history).items()
    }
    if "diagnostics" in summary:
        pictures["diagnostics.png"] = lambda path: diagnostics.picture(path, history)
    writer = callbacks.picture_writer(workdir)
    for name, draw in {**pictures, **distiller.pictures(history)}.items():
        path = workdir / name
        checkpoint.write(path, draw)
        callbacks.show_in_tensorboard(workdir, path, path.stem, config.epochs, writer)
    writer.close()
    summary["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__}
    checkpoint.write_text(finished, json.dumps(summary, indent=2) + "\n")
    for name, found in {"student": summary["student"], **summary["learners"]}.items():
        _say(f"{name}: test accuracy {found['test_accuracy']:.2%} ({config.select} epoch)")
    _say(f"see {finished}")
    return summary


def _teacher_accuracy(teacher, data, distiller):
    """Returns the teacher's accuracy on the test set; None where it has other classes."""
    if teacher.output_shape[-1] != data.num_classes:
        return None
    return measure.accuracy(teacher, data.test, distiller.teacher_inputs)


def _seconds(history):
    """Returns `{name of the log: seconds}` of what tells its own time, over all epochs."""
    names = {name for epoch in history for name in epoch if name.endswith(_SECONDS)}
    return {name: sum(epoch.get(name, 0.0) for epoch in history) for name in sorted(names)}


def _test(config, data, distiller, progress, workdir):
    """Saves what was trained, after its last and its best epoch, and measures it on the test set.

    Returns:
        `{"student": {...}, "learners": {name: {...}}, "peers": [name, ...]}`, for the summary.
    """
    trained = {"student": distiller.student, **distiller.learners()}
    scores = {name: {} for name in trained}
    epochs = {"last": config.epochs - 1, "best": progress.best["epoch"]}
    weights = {"last": _weights(distiller), "best": progress.best["weights"]}
    for which, epoch in epochs.items():
        if which == "best" and epoch == epochs["last"]:
            for found in scores.values():
                found["best"] = found["last"]
            continue
        set_weights(distiller, weights[which])
        for name, model in trained.items():
            prefix = "val" if name == "student" else f"val_{name}"
            scores[name][which] = {
                "epoch": epoch + 1,
                "validation_accuracy": progress.history[epoch].get(f"{prefix}_accuracy"),
                "test_accuracy": measure.accuracy(model, data.test),
            }
    set_weights(distiller, weights[config.select])
    measured = {}
    for name, model in trained.items():
        path = workdir / f"{name}.keras"
        checkpoint.write(path, model.save)
        chosen = scores[name][config.select]
        measured[name] = {**measure.cost(model, data, path), **chosen, **scores[name]}
    return {
        "student": measured.pop("student"),
        "learners": measured,
        "peers": list(distiller.peer_names),
    }


def _weights(distiller):
    """Returns the weights of student and learners as one list of arrays."""
    return [variable.numpy() for variable in _variables(distiller)]


def set_weights(distiller, arrays):
    """Sets what `_weights` returned."""
    for variable, array in zip(_variables(distiller), arrays):
        variable.assign(array)


def _variables(distiller):
    """Returns the variables of student and learners, which may share some, each once."""
    trained = [distiller.student, *distiller.learners().values()]
    return list({id(v): v for model in trained for v in model.weights}.values())


def check_methods(config, methods, workdir, data_dir=None):
    """Builds the distillers of several methods, so that a mistake shows before anything runs.

    Args:
        config: `ConfigDict` of a run.
        methods: Iterable of `ConfigDict`, in place of its `method`.
        workdir: Path of the directory of the comparison.
        data_dir: Where TFDS keeps its data sets; None for its default.

    Raises:
        UsageError: If something in the config or a method is wrong.
    """
    check(config)
    methods = list(methods)
    data = _load_data(config, data_dir)
    shared = None
    if any(needs_teacher(method) for method in methods):
        shared = get_teacher(config, data, workdir)
    for method in methods:
        one = copy.deepcopy(config)
        one.method = method
        build(one, data, shared if needs_teacher(method) else None)


def preflight(config, workdir=None, data_dir=None):
    """Checks a run before it is begun, as `tfkd.Distiller.check` does; nothing is written.

    Args:
        config: `ConfigDict` of a run.
        workdir: Path of the work directory, where a run may have trained the teacher already.
        data_dir: Where TFDS keeps its data sets; None for its default.

    Returns:
        A `tfkd.distillers.Report`.

    Raises:
        UsageError: If something in the config is wrong.
    """
    check(config)
    runtime.set_seed(config.seed)
    data = _load_data(config, data_dir)
    teacher = None
    if needs_teacher(config.method):
        teacher = get_teacher(config, data, workdir and pathlib.Path(workdir))
    return build(config, data, teacher).check(data.validation or data.train)


def build(config, data, teacher):
    """Returns the compiled distiller of a run, with the student and its peers anew.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        teacher: `keras.Model`; None for methods without one.

    Raises:
        UsageError: If the method's arguments or the models do not fit.
    """
    # What was drawn before depends on whether the teacher was there already.
    runtime.set_seed(config.seed)
    kinds = {config.student.model: config.student.arguments}
    student, *others = (
        # Seeds far apart, so that no peer starts as the student of another run.
        _create(kind, data, config.seed + 1000 * position, **kinds.get(kind, {}))
        for position, kind in enumerate([config.student.model, *peers(config)])
    )
    distiller = make_distiller(config, data, student, teacher, others)
    _compile(distiller, config, data, config.epochs, config.optimizer.learning_rate)
    return distiller


def _say(text):
    print(text, flush=True)


def as_json(config, without=()):
    """Returns the config as JSON, with the flag that changes numbers too; devices do not.

    Args:
        config: `ConfigDict` of a run.
        without: Iterable of the names of values to leave out.
    """
    values = {**config.to_dict(), "precision": keras.config.dtype_policy().name}
    values = {name: value for name, value in values.items() if name not in without}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def check_writable(workdir):
    """Refuses a work directory that cannot be made or written, by a `UsageError`."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--workdir={workdir}: {there} is a file; choose another directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"--workdir={workdir}: {there} cannot be written; make it writable, or choose another "
            "directory."
        )


def check_same_config(config, workdir):
    """Refuses a work directory that belongs to another config, by a `UsageError`."""
    path = workdir / "config.json"
    if not path.exists():
        foreign = [name for name in _ARTEFACTS if (workdir / name).exists()]
        if foreign:
            raise UsageError(
                f"{workdir} holds {', '.join(foreign)}, but of no run of tfkd: choose another "
                "--workdir."
            )
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is damaged: restore it, or choose another --workdir.") from error
    there, here = flatten(stored), flatten(json.loads(as_json(config)))
    for name in _LOOKING:
        there.pop(name, None)
        here.pop(name, None)
    changed = [
        f"{key} {there.get(key)!r} there, {here.get(key)!r} now"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if changed:
        raise UsageError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}): choose another --workdir, or that config."
        )


def _check_same_files(workdir):
    """Refuses to train with workers that would not resume from the same state."""
    kinds = (".json", ".keras", ".npz")
    files = [path for path in sorted(workdir.rglob("*")) if path.suffix in kinds]
    sizes = [(path.name, path.stat().st_size) for path in files if not path.name.startswith(".")]
    if len(set(runtime.all_gather_int(zlib.crc32(repr(sizes).encode())))) > 1:
        raise UsageError(
            f"The workers see different files in {workdir}: --workdir must be a directory that "
            "they share, or one that no run has used."
        )


def _load_data(config, data_dir):
    with runtime.chief_first():
        return work_directory.load_data(config, data_dir)


def _create(model, data, seed, **arguments):
    return models.create(
        model, num_classes=data.num_classes, input_shape=data.input_shape, seed=seed, **arguments
    )


def get_teacher(config, data, workdir):
    """Returns the teacher: the one used here before, the given one, or one to be trained.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        workdir: Path of the work directory; None where there is none.

    Raises:
        UsageError: If the given file is missing, or holds no model of one output.
    """
    own = workdir and workdir / "teacher.keras"
    given = config.teacher.path and pathlib.Path(config.teacher.path)
    path = own if own and own.exists() else given
    if path and path.exists():
        remedy = "give a whole .keras file"
        if path == own:
            remedy = "remove it, and the same command makes it anew"
        try:
            teacher = work_directory.load_model(path, remedy)
        except UsageError as error:
            raise UsageError(f"Teacher {error}") from error
        if len(teacher.outputs) != 1:
            raise UsageError(
                f"Teacher {path} has {len(teacher.outputs)} outputs: it must have one, the logits."
            )
        return teacher
    if path:
        raise UsageError(f"Teacher {path} does not exist: train one, or correct the path.")
    # Another seed than the student's, or two models of one kind would start equal.
    return _create(config.teacher.model, data, config.seed + 1)


def train_teacher(config, data, teacher, workdir):
    """Trains the teacher and saves it as `teacher.keras`, unless it is there already.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        teacher: What `get_teacher` returned. One that was given is only saved.
        workdir: Path of the work directory.
    """
    path = workdir / "teacher.keras"
    if path.exists():
        return
    if not config.teacher.path:
        _say(f"teacher {config.teacher.model} ({teacher.count_params():,} parameters)")
        trainer = KnowledgeDistiller(teacher)
        _compile(trainer, config, data, config.teacher.epochs, config.teacher.learning_rate)
        fit(trainer, config, data, config.teacher.epochs, workdir / "teacher")
    checkpoint.write(path, teacher.save)


def _compile(distiller, config, data, epochs, learning_rate):
    rate = optimizers.schedule(
        learning_rate=learning_rate,
        steps=max(1, epochs * data.steps_per_epoch // config.accumulation_steps),
        **config.schedule.to_dict(),
    )
    settings = {**config.optimizer.to_dict(), "learning_rate": rate}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if data.one_hot:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    own = config.method.optimizers.to_dict() if distiller.extra_optimizers else {}
    distiller.compile(
        optimizers.SGD(**settings),
        loss=loss,
        metrics=["accuracy"],
        accumulation_steps=config.accumulation_steps,
        **own,
    )


def fit(
    distiller,
    config,
    data,
    epochs,
    folder,
    preparation_epochs=None,
    measuring=(),
    further=(),
):
    """Trains in `folder`, from its checkpoint where there is one.

    Args:
        distiller: A compiled `tfkd.Distiller`.
        config: `ConfigDict` of the run.
        data: A `tfkd.data.Data`.
        epochs: Integer.
        folder: Path.
        preparation_epochs: Integer, for how long to prepare losses that need it; None for what
            each of them asks for.
        measuring: List of callbacks that add to the logs of the epochs.
        further: Callbacks beside those that keep the checkpoint, the metrics and the pictures;
            not for the preparations.

    Returns:
        A `_Progress`, with the `history` of logs, the `best` epoch and weights of the student,
        and the `seconds` that training took, those before an interruption included.
    """
    # Which run and which of its stages a checkpoint belongs to; models alone can be alike.
    digest = hashlib.sha256(as_json(config, _LOOKING).encode()).hexdigest()[:12]
    progress = _Progress(data, folder, f"{type(distiller).__name__} of config {digest}")
    restored = progress.restore(distiller)
    if restored is not None:
        if restored.warning:
            _say(f"warning: {restored.warning}")
        _say(f"resuming after epoch {len(progress.history)} of {epochs} ({restored.path})")
    for preparation in distiller.preparations():
        _say(f"preparing loss {preparation.prepared_loss.name}")
        part = preparation_epochs or preparation.epochs
        fit(preparation, config, data, part, folder / preparation.name)
        preparation.finish()
    pictures = _epoch_pictures(distiller, data, folder, progress.history)
    if len(progress.history) == epochs:
        # The interruption may have come between the last checkpoint and its pictures.
        for callback in pictures:
            callback.set_model(distiller)
            callback.on_train_begin()
            callback.on_train_end()
        return progress
    # Where there are further logs, those on the screen stay as they are.
    screen = [keras.callbacks.ProgbarLogger()] if measuring else []
    try:
        distiller.fit(
            data.train,
            validation_data=None if isinstance(distiller, Preparation) else data.validation,
            epochs=epochs,
            initial_epoch=len(progress.history),
            callbacks=[
                *screen,
                *measuring,
                progress,
                *pictures,
                keras.callbacks.TensorBoard(folder / "tensorboard"),
                *further,
            ],
            verbose=1 if sys.stdout.isatty() else 2,
        )
    except DivergenceError as error:
        raise DivergenceError(f"{error} {progress.last_good()}") from error
    return progress


def _diagnostics(config, data):
    """Returns the callback that looks at student and teacher after every epoch."""
    gradient_data = data.train if needs_indices(config) else None
    return callbacks.Diagnostics(data.validation, gradient_data=gradient_data)


def _epoch_pictures(distiller, data, folder, history):
    """Returns the callback that draws what the method shows of each epoch, in a list, or none."""
    if type(distiller).epoch_pictures is Distiller.epoch_pictures:
        return []
    images, labels = next(iter((data.validation or data.train).take(1)))[:2]
    labels = labels["label"] if isinstance(labels, dict) else labels
    return [callbacks.EpochPictures(folder, images[:8], labels[:8], data.class_names, history)]


class _Progress(keras.callbacks.Callback):
    """Keeps the checkpoint, the metrics and the best weights of a run up to date."""

    def __init__(self, data, folder, run):
        super().__init__()
        self.data = data
        self.folder = folder
        self.run = run
        self.path = folder / "checkpoint.npz"
        self.history = []
        self.best = None
        # The last checkpoint that is known to be good, and the epochs that it holds.
        self.saved = None
        self.seconds = 0.0
        self._epoch_began = None

    def restore(self, distiller):
        """Goes on from the last good checkpoint; returns it, or None where there is none."""
        restored = checkpoint.restore(self.path, distiller, self.run)
        if restored is not None:
            state, extra = restored.state, restored.extra
            self.history, self.seconds = state["history"], state["seconds"]
            weights = [extra[f"best/{i}"] for i in range(len(extra))]
            self.best = {"epoch": state["best_epoch"], "weights": weights}
            self.saved = (restored.path, len(self.history))
        return restored

    def last_good(self):
        """Returns a sentence that says where the last checkpoint is."""
        if self.saved is None:
            return f"{self.folder} has no checkpoint yet."
        path, epochs = self.saved
        return f"The last good checkpoint is {path}, of epoch {epochs}."

    def on_epoch_begin(self, epoch, logs=None):
        self.data.start_epoch(epoch)
        self._epoch_began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds += time.perf_counter() - self._epoch_began
        variable = checkpoint.not_finite(self.model)
        if variable is not None:
            # No later step would mend it.
            raise DivergenceError(
                f"Training diverged: {variable} has NaN or infinite values after the last step of "
                f"epoch {epoch + 1}. A smaller learning rate may help."
            )
        self.history.append({name: float(value) for name, value in logs.items()})
        # Later epochs win a tie: they have seen more.
        score = self.history[-1].get("val_accuracy", 0.0)
        if self.best is None or score >= self.history[self.best["epoch"]].get("val_accuracy", 0.0):
            self.best = {"epoch": epoch, "weights": _weights(self.model)}
        checkpoint.save(
            self.path,
            self.model,
            {
                "history": self.history,
                "best_epoch": self.best["epoch"],
                "seconds": self.seconds,
            },
            {f"best/{i}": array for i, array in enumerate(self.best["weights"])},
            self.run,
        )
        self.saved = (self.path, len(self.history))
        # From the history rather than appended to: a run that was killed leaves no double rows.
        text = io.StringIO()
        rows = [{"epoch": i + 1, **logs} for i, logs in enumerate(self.history)]
        # What is not measured in every epoch has empty cells in the others.
        columns = dict.fromkeys(name for row in rows for name in row)
        columns = [name for name in columns if not name.endswith(_SECONDS)]
        writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        checkpoint.write_text(self.folder / "metrics.csv", text.getvalue())
