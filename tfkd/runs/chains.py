"""Chains of runs: what one stage has trained teaches the next."""

import copy
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from tfkd.config import check, of_teacher
from tfkd.errors import UsageError, check_number, check_one_of, check_positive_integer
from tfkd.methods import TEACHER_IMAGE_KEYS, needs_teacher
from tfkd.runs import execute, results, work_directory
from tfkd.runs.assemble import build, get_teacher, load_data
from tfkd.runs.fitting import kept
from tfkd.runs.teacher_images import joined_teachers

#: Who teaches in each is told by the flag of `tfkd chain`.
PROTOCOLS = ("takd", "dgkd", "rco", "eskd")

#: How far the seeds of two stages lie apart: generations of one kind must not begin alike, and
#: chains of neighbouring seeds not share any.
SEEDS_APART = 100


class Stage(NamedTuple):
    """One run of a chain.

    Attributes:
        number: Integer, the position of its model in the chain, from 1 on.
        folder: Path of its work directory.
        config: Its `ConfigDict`.
        told: String, which stages teach it, for the table.
        kinds: Tuple of the teachers before they are trained: zoo ids, or the path of the given
            one.
    """

    number: int
    folder: pathlib.Path
    config: ConfigDict
    told: str = ""
    kinds: tuple = ()

    @property
    def model(self):
        """Path of the model that it trains."""
        return self.folder / "student.keras"


def chain(config, workdir, models, protocol="takd", anchors=4, stop=0.3, command=None):
    """Runs the stages of a chain one after the other, and writes the table.

    Every stage is a run of `tfkd.train` in a directory of its own, whose teacher is what an
    earlier one has saved. The same call again goes on where it was interrupted; a longer chain
    in the same directory goes on where the shorter one ended.

    Args:
        config: `ConfigDict` of a run: the method of all stages but the first, data, schedules.
            Its models are replaced by those of the chain.
        workdir: Path of the directory of the chain.
        models: List of zoo ids, the largest first, the student last. The first may be the path of
            a trained `.keras` model.
        protocol: One of `PROTOCOLS`.
        anchors: Integer, of `"rco"`, how many moments of the teacher's training teach.
        stop: Number above 0 and up to 1, of `"eskd"`, the share of `config.teacher.epochs` that
            the first model is trained.
        command: String, the command that was run, for the table.

    Returns:
        The rows of the table, a list of dictionaries; see `tfkd.runs.results.table_rows`.

    Raises:
        UsageError: If the chain is too short, its method has no teacher, or something in the
            config is wrong.
    """
    workdir = pathlib.Path(workdir)
    stages = stages_of(config, workdir, models, protocol, anchors, stop)
    if not all(stage.folder.exists() for stage in stages):
        # A mistake in the last stage shows before the first one is trained.
        _check(stages)
    rows, histories = [], {}
    for stage in stages:
        print(f"== {stage.folder}", flush=True)
        summary = execute.run(stage.config, stage.folder, command=command)
        if not rows and stage.number > 1:
            rows += _rows_of_given(stage, summary)
        name = f"{stage.number}{stage.told}"
        found = results.table_rows(stage.config.method.name, stage.config, [summary])
        rows += [{**row, "role": name} for row in found]
        histories[stage.folder.name] = [work_directory.history(stage.folder)]
    results.write(
        workdir, f"{', '.join(models)}: {protocol} on {config.data.name}", rows, histories, command
    )
    return rows


def stages_of(config, workdir, models, protocol="takd", anchors=4, stop=0.3):
    """Returns the `Stage`s of a chain; the arguments are those of `chain`."""
    check_one_of("--protocol", protocol, PROTOCOLS)
    if len(models) < 2:
        raise UsageError(
            "A chain needs at least two models, the largest first: --chain=resnet56,resnet20."
        )
    if not needs_teacher(config.method):
        raise UsageError(
            f"Method {config.method.name!r} has no teacher, and in a chain every model but the "
            "first has one: take another, as in --config=...:method=kd."
        )
    first, *others = models
    given = first.endswith(".keras")
    base = copy.deepcopy(config)
    base.teacher.model, base.teacher.path = ("", first) if given else (first, "")
    if given and protocol in ("rco", "eskd"):
        raise UsageError(
            f"{protocol} follows the teacher's training: begin the chain with a model of the zoo, "
            f"not with the trained {first}."
        )
    found = []
    if not given:
        trained = of_teacher(base)
        if protocol == "eskd":
            check_number("--stop", stop, "above 0 and at most 1", lambda x: 0 < x <= 1)
            trained.epochs = max(1, round(stop * trained.epochs))
        if protocol == "rco":
            trained.keep_every = _interval(anchors, trained.epochs, config.epochs)
        found.append(Stage(1, workdir / f"stage1-{first}", trained))
    if protocol == "rco":
        return found + _anchored(base, workdir, models, found[0], anchors)
    kinds, paths = [first], [first if given else str(found[0].model)]
    for number, model in enumerate(others, start=2):
        before = len(kinds) if protocol == "dgkd" else 1
        one = _student(base, number, model, kinds[-before:], paths[-before:])
        told = ", taught by " + ", ".join(map(str, range(number - before, number)))
        folder = workdir / f"stage{number}-{model}"
        found.append(Stage(number, folder, one, told, tuple(kinds[-before:])))
        kinds.append(model)
        paths.append(str(found[-1].model))
    return found


def _interval(anchors, teacher_epochs, epochs):
    """Returns after how many epochs each the teacher is kept."""
    check_positive_integer("--anchors", anchors)
    fewest = min(teacher_epochs, epochs)
    if anchors > fewest:
        raise UsageError(
            f"--anchors={anchors}: teacher and student need as many epochs; there are {fewest}."
        )
    return teacher_epochs // anchors


def _anchored(config, workdir, models, teacher, anchors):
    """Returns the stages of a student that learns from its teacher at moments of its training.

    They share the epochs of the config, and each begins with the student of the one before.
    """
    if len(models) != 2:
        raise UsageError(f"rco takes a teacher and a student; received {', '.join(models)}.")
    kind, model = models
    found = []
    for anchor in range(1, anchors + 1):
        epoch, path = anchor * teacher.config.keep_every, teacher.model
        if anchor < anchors:
            path = kept(teacher.folder, epoch)
        one = _student(config, anchor + 1, model, [kind], [str(path)])
        # The first stages take what remains.
        one.epochs = (config.epochs + anchors - anchor) // anchors
        if found:
            one.student.weights = str(found[-1].model)
        told = f", taught by 1 after epoch {epoch if anchor < anchors else teacher.config.epochs}"
        folder = workdir / f"stage{anchor + 1}-{model}"
        found.append(Stage(anchor + 1, folder, one, told, (kind,)))
    return found


def _student(config, number, model, kinds, paths):
    """Returns the config of the run that trains a model under earlier ones."""
    one = copy.deepcopy(config)
    one.seed = config.seed + SEEDS_APART * (number - 1)
    if model != config.student.model:
        one.student.model, one.student.arguments, one.student.weights = model, {}, None
    given = config.teacher.path in paths
    one.teacher.model, one.teacher.path = "+".join(kinds), "+".join(paths)
    own = [name for name in TEACHER_IMAGE_KEYS if config.teacher[name] is not None]
    if own and given and len(paths) > 1:
        raise UsageError(
            f"--config.teacher.{own[0]} holds for the given teacher alone, and in a chain by dgkd "
            "it teaches beside others: save it as a model that takes the student's images."
        )
    if not given:
        for name in own:
            one.teacher[name] = None
    if len(paths) == 1 and "dgkd" in one.method.losses and one.method.losses.dgkd.spots is None:
        # The sum over one teacher: there is nothing to be found at the places of several.
        one.method.name += ":dgkd.spots=logits"
        one.method.losses.dgkd = ConfigDict({**one.method.losses.dgkd, "spots": "logits"})
    return one


def _check(stages):
    """Builds the distiller of every stage with teachers that are not trained yet."""
    data = load_data(stages[0].config)
    for stage in {(stage.config.student.model, stage.kinds): stage for stage in stages}.values():
        check(stage.config)
        one = copy.deepcopy(stage.config)
        one.student.weights = None
        teachers = []
        for kind in stage.kinds:
            given = kind.endswith(".keras")
            one.teacher.model, one.teacher.path = ("", kind) if given else (kind, "")
            teachers.append(get_teacher(one, data, None))
        several = len(teachers) > 1
        teacher = joined_teachers(one, data, teachers) if several else next(iter(teachers), None)
        build(one, data, teacher)


def _rows_of_given(stage, summary):
    """Returns the row of a given teacher, as the first stage that it teaches has measured it."""
    measured = {"student": summary["teacher"], "learners": {}, "training_seconds": 0.0}
    if summary["teacher"]["test_accuracy"] is None:
        return []
    found = results.table_rows("teacher", stage.config, [measured])
    return [{**row, "role": "1", "method": "given"} for row in found]
