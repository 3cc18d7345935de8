"""One run: config, teacher, distiller, artefacts."""

import copy
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfkd import callbacks, files, plots, runtime, taps
from tfkd.config import check, of_teacher
from tfkd.distillers import KnowledgeDistiller
from tfkd.errors import UsageError
from tfkd.inspection import diagnostics
from tfkd.methods import ALONE, needs_teacher
from tfkd.runs import console, longer, measure, work_directory
from tfkd.runs.assemble import (
    build,
    cache_teacher,
    compile_distiller,
    get_teacher,
    load_data,
)
from tfkd.runs.console import say
from tfkd.runs.fitting import SECONDS, diagnostics_callback, fit, set_weights, weights_of
from tfkd.runs.guard import as_json, check_same_config, check_same_files, check_writable


def run(config, workdir, command=None):
    """Trains a teacher where none is given, distils a student and writes the artifacts.

    The same call again resumes where it was interrupted, and returns at once when the run is
    complete. With more epochs it goes on, where that gives what as many epochs from the start
    would have given.

    Args:
        config: `ConfigDict`, as the files in `configs/` make it.
        workdir: Path of the work directory; it is made if need be.
        command: String, the command that was run, for the summary.

    Returns:
        The summary, a dictionary; also in `summary.json`.

    Raises:
        UsageError: If something in the config is wrong, or the work directory belongs to a run
            of another config, or of fewer epochs with a schedule that is over.
    """
    workdir = pathlib.Path(workdir)
    check(config)
    check_writable(workdir)
    before = longer.shorter(config, workdir)
    if before is None:
        check_same_config(config, workdir)
    check_same_files(workdir)
    finished = workdir / "summary.json"
    if finished.exists():
        try:
            summary = files.read_json(finished)
            # A run that was made longer keeps the summary of the shorter one until it ends.
            complete = summary["config"]["epochs"] == config.epochs
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{finished} is damaged: remove it, and the same command writes it again."
            ) from error
        if complete:
            say(f"{workdir} holds this run, complete.\n{console.result(summary, workdir)}")
            return summary
    files.remove_partial(workdir)

    runtime.set_seed(config.seed)
    data = load_data(config)
    work_directory.check_class_names(workdir, data)
    # Everything is built before anything is trained: a mistake in the method shows at once.
    teacher = get_teacher(config, data, workdir) if needs_teacher(config.method) else None
    distiller = build(config, data, teacher)
    student = distiller.student
    if before is not None:
        longer.go_on(before, config, data, distiller, workdir)
    say(console.begun(config, data, teacher, student))
    if not (workdir / "config.json").exists():
        files.write_text(workdir / "config.json", as_json(config))
    if not (workdir / "class_names.txt").exists():
        work_directory.write_class_names(workdir / "class_names.txt", data.class_names)

    summary = {"command": command, "config": json.loads(as_json(config)), "data": data.sizes}
    if teacher is not None:
        train_teacher(config, data, teacher, workdir)
        prepare, forward, seen = distiller.teacher_inputs, measure.forward(teacher), data.of_teacher
        summary["teacher"] = {
            **measure.cost(teacher, seen, workdir / "teacher.keras", prepare, forward),
            # A teacher of other classes has no accuracy on these.
            "test_accuracy": measure.accuracy(teacher, seen.test, prepare, forward)
            if teacher.output_shape[-1] == data.num_classes
            else None,
        }
        data = cache_teacher(config, data, distiller, workdir)
    if config.check and config.method.name != ALONE:
        report = distiller.check(data.with_teacher_images("validation") or data.train)
        say(report)
        summary["check"] = report.as_dict()
    say("training the student")
    rate = config.optimizer.learning_rate
    train_head(config, data, student, config.student.head_epochs, rate, workdir / "head")
    measuring = [diagnostics_callback(config, data)] if config.diagnostics else []
    progress = fit(
        distiller,
        config,
        data,
        config.epochs,
        workdir,
        config.method.preparation_epochs,
        measuring=measuring,
        keep_every=config.keep_every,
    )
    history = progress.history
    summary["training_seconds"] = round(progress.seconds, 1)
    if progress.speeds:
        summary["training_images_per_second"] = round(float(np.median(progress.speeds)))
    summary["peak_memory_bytes"] = measure.peak_memory()

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
        name.removesuffix(SECONDS): {
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
        files.write(path, draw)
        callbacks.show_in_tensorboard(workdir, path, path.stem, config.epochs, writer)
    writer.close()
    summary["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__}
    files.write_text(finished, json.dumps(summary, indent=2) + "\n")
    say(console.result(summary, workdir))
    return summary


def _seconds(history):
    """Returns `{name of the log: seconds}`, summed over all epochs, of the logs that are times."""
    names = {name for epoch in history for name in epoch if name.endswith(SECONDS)}
    return {name: sum(epoch.get(name, 0.0) for epoch in history) for name in sorted(names)}


def _test(config, data, distiller, progress, workdir):
    """Tests the trained models of the last and the best epoch, and saves the selected ones.

    Returns:
        `{"student": {...}, "learners": {name: {...}}, "peers": [name, ...]}`, for the summary.
    """
    trained = {"student": distiller.student, **distiller.learners()}
    forward = {name: measure.forward(model) for name, model in trained.items()}
    scores = {name: {} for name in trained}
    epochs = {"last": len(progress.history) - 1, "best": progress.best["epoch"]}
    weights = {"last": weights_of(distiller), "best": progress.best["weights"]}
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
                "test_accuracy": measure.accuracy(model, data.test, run=forward[name]),
            }
    set_weights(distiller, weights[config.select])
    measured = {}
    for name, model in trained.items():
        path = workdir / f"{name}.keras"
        files.write(path, model.save)
        chosen = scores[name][config.select]
        cost = measure.cost(model, data, path, run=forward[name])
        measured[name] = {**cost, **chosen, **scores[name]}
    return {
        "student": measured.pop("student"),
        "learners": measured,
        "peers": list(distiller.peer_names),
    }


def check_methods(config, methods, workdir):
    """Builds the distillers of several methods, so that a mistake shows before anything runs.

    Args:
        config: `ConfigDict` of a run.
        methods: Iterable of `ConfigDict`, in place of its `method`.
        workdir: Path of the directory of the comparison.

    Raises:
        UsageError: If something in the config or a method is wrong.
    """
    check(config)
    methods = list(methods)
    data = load_data(config)
    shared = None
    if any(needs_teacher(method) for method in methods):
        shared = get_teacher(config, data, workdir)
    for method in methods:
        one = copy.deepcopy(config)
        one.method = method
        build(one, data, shared if needs_teacher(method) else None)


def check_run(config, workdir=None):
    """Checks a run before it is begun, as `tfkd.Distiller.check` does; nothing is written.

    Args:
        config: `ConfigDict` of a run.
        workdir: Path of the work directory, where a run may have trained the teacher already.

    Returns:
        A `tfkd.inspection.CheckResult`.

    Raises:
        UsageError: If something in the config is wrong.
    """
    check(config)
    runtime.set_seed(config.seed)
    data = load_data(config)
    teacher = None
    if needs_teacher(config.method):
        teacher = get_teacher(config, data, workdir and pathlib.Path(workdir))
    distiller = build(config, data, teacher)
    return distiller.check(data.with_teacher_images("validation") or data.train)


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
        say("training the teacher")
        if config.teacher.train_examples is not None:
            data = load_data(of_teacher(config))
        rate, own = config.teacher.learning_rate, workdir / "teacher"
        train_head(config, data, teacher, config.teacher.head_epochs, rate, own / "head")
        trainer = KnowledgeDistiller(teacher)
        compile_distiller(trainer, config, data, config.teacher.epochs, rate)
        fit(trainer, config, data, config.teacher.epochs, own)
    files.write(path, teacher.save)


def train_head(config, data, model, epochs, learning_rate, folder):
    """Trains the last layer of a model alone, on the labels.

    Args:
        config: `ConfigDict` of the run.
        data: A `tfkd.data.Data`.
        model: `keras.Model`, whose other layers begin with the weights of another task. Batch
            normalizations keep their statistics, as Keras has it of frozen layers.
        epochs: Integer; 0 trains nothing.
        learning_rate: Number.
        folder: Path.

    Raises:
        UsageError: If the model does not end with global average pooling and one dense layer.
    """
    if not epochs:
        return
    kernel = taps.classifier(model).kernel
    # Without containers, whose flag is that of all that is inside, and what stays frozen anyway.
    frozen = [
        layer
        for layer in runtime.all_layers(model)
        if len(runtime.all_layers(layer)) == 1
        and layer.trainable_weights
        and all(variable is not kernel for variable in layer.weights)
    ]
    for layer in frozen:
        layer.trainable = False
    try:
        say("training the last layer alone")
        trainer = KnowledgeDistiller(model)
        compile_distiller(trainer, config, data, epochs, learning_rate)
        fit(trainer, config, data, epochs, folder)
    finally:
        for layer in frozen:
            layer.trainable = True
