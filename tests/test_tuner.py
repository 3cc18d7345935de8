"""Searches by KerasTuner: what they try, what they keep, and what becomes of the best."""

import csv
import json
import os
import re
import socket
import subprocess
import sys

import h5py
import keras
import keras_tuner
import numpy as np
import pytest
from commands import ROOT, call, refused
from matplotlib import pyplot

import tfkd
import tfkd.config
from tfkd import compare, methods, plots, train, tune, tuner
from tfkd.errors import UsageError
from tfkd.runs import fitting, measure, work_directory
from tfkd.tuner import artefacts
from tfkd.tuner.search_space import Choice, Range, SearchSpace

SMALL = [
    f"--config={ROOT}/configs/digits.py:method=kd,teacher=resnet8,student=resnet8",
    "--config.data.train_examples=64",
    "--config.epochs=1",
    "--config.teacher.epochs=1",
    "--config.check=False",
]
SEARCH = "optimizer.learning_rate:log:0.001..0.5,method.losses.kd.temperature:1..8"


class Unreadable:
    """Stands where the test split was."""

    def __iter__(self):
        raise AssertionError("a search read the test split")


def load_without_test(load):
    def loaded(*arguments):
        data = load(*arguments)
        data.test = Unreadable()
        return data

    return loaded


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The flag, for processes; functions find the directory in the environment."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield f"--data_dir={folder}"


@pytest.fixture(scope="module")
def search(data_dir):
    """The flags of a small search."""
    return [*SMALL, data_dir, "--confirm=1", f"--search={SEARCH}", "--max_trials=2"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory, search):
    """The work directory of a search, which was not to read the test split."""
    workdir = tmp_path_factory.mktemp("searches") / "complete"
    with pytest.MonkeyPatch.context() as patch:
        loaded = load_without_test(work_directory.load_data)
        patch.setattr(work_directory, "load_data", loaded)
        call(tune.main, *search, f"--workdir={workdir}")
    return workdir


def table(workdir):
    with open(workdir / "trials.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small_config(method="kd"):
    config = tfkd.config.default_config(method, teacher="resnet8", student="resnet8")
    config.data.train_examples = 64
    config.epochs = 1
    return config


def plain(seed=0):
    return tfkd.models.create("resnet8", num_classes=10, input_shape=(8, 8, 1), seed=seed)


def stored(path):
    """The number of values in a file of weights."""
    sizes = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None
        )
    return sum(sizes)


@pytest.mark.slow
def test_a_search_keeps_students_alone(searched):
    rows = table(searched)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert {row["epochs"] for row in rows} == {"1"}
    assert len({row["optimizer.learning_rate"] for row in rows}) == 2
    for row in rows:
        folder = searched / "search" / f"trial_{row['trial']}"
        student = keras.models.load_model(folder / "student.keras")
        assert student.count_params() == plain().count_params()
    # Neither a teacher nor a checkpoint with adapters and optimizers, under whatever name.
    kinds = {path.suffix for path in (searched / "search").rglob("*") if path.is_file()}
    assert kinds == {".json", ".keras", ".csv", ".v2"}
    largest = max(path.stat().st_size for path in (searched / "search").rglob("*"))
    plain().save(searched / "plain.keras")
    assert largest < 1.05 * (searched / "plain.keras").stat().st_size
    found = json.loads((searched / "tuner.json").read_text(encoding="utf-8"))
    assert found["best"]["score"] == max(row["score"] for row in found["trials"])
    assert (searched / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert not list(searched.rglob("*.partial.*"))


def test_the_same_command_again_has_the_best_students(searched, search, data_dir, capsys):
    """Which raises with the distiller of keras: it is not built when it is loaded."""
    files = [*(searched / "search").rglob("*.keras"), searched / "teacher.keras"]
    before = {path: path.stat().st_mtime_ns for path in files}
    found, once = [], tune.tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "tune", lambda *a, **b: found.append(once(*a, **b)))
        call(tune.main, *search, f"--workdir={searched}")
    assert "best of 2 trials" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    best = found[0].get_best_models(2)
    scores = [trial.score for trial in found[0].oracle.get_best_trials(2)]
    assert scores[0] >= scores[1]
    data = found[0].hypermodel.data(small_config())
    for student, score in zip(best, scores, strict=True):
        assert measure.accuracy(student, data.validation) == pytest.approx(score, abs=1e-6)


def test_the_best_is_confirmed_with_a_seed_that_the_search_has_not_seen(searched):
    best = json.loads((searched / "tuner.json").read_text(encoding="utf-8"))["best"]
    seeds, accuracies = best["confirmed"]["seeds"], best["confirmed"]["accuracies"]
    assert seeds == [1] and 0 <= accuracies[0] <= 1
    told = json.loads((searched / "best_config.json").read_text(encoding="utf-8"))["promise"]
    assert told == (
        f"validation accuracy {accuracies[0]:.2%} with seed 1, which the search has not seen; in "
        f"the search {best['score']:.2%} with seed 0; after 1 epoch; the best of 2 trials"
    )
    kept = searched / "confirmation" / f"trial_{best['trial']}.json"
    assert json.loads(kept.read_text(encoding="utf-8")) == {"1": accuracies[0]}
    # No checkpoints, and so no adapters and optimizers, stay.
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


@pytest.mark.slow
def test_the_best_config_keeps_its_promise(searched, data_dir, tmp_path):
    best = json.loads((searched / "tuner.json").read_text(encoding="utf-8"))["best"]
    call(
        train.train,
        f"--config={searched}/best_config.json",
        data_dir,
        f"--workdir={tmp_path / 'it'}",
    )
    summary = json.loads((tmp_path / "it" / "summary.json").read_text(encoding="utf-8"))
    assert summary["config"]["optimizer"]["learning_rate"] == pytest.approx(
        best["values"]["optimizer.learning_rate"]
    )
    assert summary["student"]["validation_accuracy"] == best["score"]
    student = keras.models.load_model(tmp_path / "it" / "student.keras")
    kept = keras.models.load_model(searched / f"search/trial_{best['trial']}/student.keras")
    for a, b in zip(student.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "main, change, message",
    [
        (tune.main, ["--config.batch_size=8"], "has no such value"),
        (tune.main, ["--config.optimizer.momentum=0.8"], "momentum 0.9 there, 0.8 now"),
        (tune.main, ["--search=optimizer.learning_rate:1..2"], "tuner.search .* there"),
        (tune.main, ["--tuner=bayesian"], "tuner.kind 'random' there, 'bayesian' now"),
        (train.train, [], "holds a run of another config"),
    ],
)
def test_another_config_is_refused(main, change, message, searched, search, capsys):
    arguments = search if main is tune.main else search[:-3]
    files = sorted(searched.rglob("*"))
    line = refused(capsys, main, *arguments, *change, f"--workdir={searched}")
    assert re.search(message, line), line
    assert files == sorted(searched.rglob("*"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "--search is empty"),
        ("optimizer.learning_rate", "must be like optimizer.learning_rate:log:"),
        ("optimizer.lerning_rate:1..2", "did you mean optimizer.learning_rate"),
        ("method.losses.kd:1..2", "did you mean method.losses.kd.spots or .*method.losses.kd.temp"),
        ("method.losses.at.weight:1..2", "method kd has no value method.losses.at.weight"),
        ("method:kd|vid,method.losses.at.weight:1..2", "kd or vid has no value"),
        ("optimizer.learning_rate:0.2..0.1", "the range must go up"),
        ("optimizer.learning_rate:1..1", "the range must go up"),
        ("optimizer.learning_rate:log:0..1", "must begin above 0"),
        ("optimizer.learning_rate:lin:1..2", "must be like"),
        ("optimizer.learning_rate:a..b", "takes numbers; received 'a'"),
        ("optimizer.learning_rate:0.1..nan", "takes numbers"),
        ("optimizer.learning_rate:0.1||0.2", "an option that is empty"),
        ("optimizer.momentum:0.5..1.5", "momentum must be from 0 to 1; received 1.5"),
        ("optimizer.nesterov:0..1", "is no number but like False"),
        ("optimizer.nesterov:yes|no", "takes True or False; received 'yes'"),
        ("accumulation_steps:1.5..3", "takes whole numbers"),
        ("schedule.name:cosine|cosine", "there twice"),
        ("epochs:1..3", "must be the same for all trials"),
        ("teacher.learning_rate:1..3", "they share the teacher"),
        ("optimizer.momentum:0.1..0.2,optimizer.momentum:0.3..0.4", "momentum twice"),
        ("method:kd|dk", "Unknown method 'dk'"),
    ],
)
def test_mistakes_in_a_search_are_told(text, message):
    with pytest.raises(UsageError, match=message) as error:
        SearchSpace(small_config(), text).limits()
    assert "\n" not in str(error.value)


def test_what_only_shows_when_built_is_told_before_training(data_dir):
    text = "method.losses.kd.temperature:0..4"
    with pytest.raises(UsageError, match="temperature must be .* greater than 0"):
        tuner.HyperModel(small_config(), plain(1), text)
    with pytest.raises(UsageError, match="needs a teacher"):
        tuner.HyperModel(small_config(), None)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tuner=grid"], "grid"),
        (["--tuner=hyperband", "--max_trials=3"], "leave --max_trials out"),
        (["--config.data.validation=0.0"], "data.validation above 0"),
    ],
)
def test_mistakes_in_flags_are_told(flags, message, searched, data_dir, tmp_path, capsys):
    given = SMALL[0].replace("teacher=resnet8", f"teacher={searched}/teacher.keras")
    line = refused(capsys, tune.main, given, *SMALL[1:], data_dir, *flags, f"--workdir={tmp_path}")
    assert message in line
    assert not list(tmp_path.rglob("trial_*"))


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"KERASTUNER_ORACLE_IP": "127.0.0.1"}, "KERASTUNER_ORACLE_PORT, KERASTUNER_TUNER_ID is"),
        (
            {
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": "here",
                "KERASTUNER_TUNER_ID": "chief",
            },
            "must be the number of a port",
        ),
    ],
)
def test_mistakes_in_the_environment_are_told(
    environment, message, search, tmp_path, capsys, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in refused(capsys, tune.main, *search, f"--workdir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_what_is_searched_by_default_follows_from_the_method():
    items = SearchSpace(small_config()).items["kd"]
    assert items["optimizer.learning_rate"] == Range("optimizer.learning_rate", 0.017, 0.15, True)
    assert items["method.losses.kd.temperature"] == Range("method.losses.kd.temperature", 1.0, 8.0)
    assert items["method.losses.kd.weight"].logarithmic and len(items) == 3
    assert set(SearchSpace(small_config("alone")).items["alone"]) == {"optimizer.learning_rate"}
    # What is turned off stays so, and items take the place of default ones.
    text = "default,optimizer.learning_rate:0.1|0.2,accumulation_steps:1..4"
    items = SearchSpace(small_config("ackd:adversarial_weight=0.0"), text).items.popitem()[1]
    assert "method.arguments.adversarial_weight" not in items
    assert {"method.arguments.kd_weight", "method.arguments.temperature"} < set(items)
    assert items["optimizer.learning_rate"] == Choice("optimizer.learning_rate", (0.1, 0.2))
    assert items["accumulation_steps"].whole


def test_several_methods_have_what_they_take():
    space = SearchSpace(small_config(), "method:kd|kd+at|ackd:attention=logit")
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    for method in space.methods:
        hp.values["method"] = method
        for item in hp.space:
            if item.name != "method" and hp.is_active(item):
                hp.values[item.name] = item.random_sample(3)
        chosen, values = space.declare(hp)
        config = space.config(chosen, values)
        tfkd.config.check(config)
        assert chosen == config.method.name == method
        assert set(values) == set(space.items[method])
        flat = tfkd.config.flatten(config.to_dict())
        assert {key: flat[key] for key in values} == values
    assert config.method.arguments.attention == "logit"
    # What one trial tries stays its own.
    first, second = SearchSpace(small_config()).limits()
    assert first.method.losses.kd.temperature == 1 and second.method.losses.kd.temperature == 8


def test_choices_keep_their_type():
    text = "optimizer.nesterov:True|False,schedule.milestones:(0.5,)|(0.25,0.75)"
    space = SearchSpace(small_config(), text)
    configs = space.limits()
    assert {one.optimizer.nesterov for one in configs} == {True, False}
    assert {one.schedule.milestones for one in configs} == {(0.5,), (0.25, 0.75)}
    hp = keras_tuner.HyperParameters.from_proto(_declared(space).to_proto())
    assert space.declare(hp)[1]["optimizer.nesterov"] is True


def _declared(space):
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    return hp


def test_what_workers_get_is_what_the_chief_knows():
    """Numbers go to workers in float32."""
    space = SearchSpace(small_config(), "optimizer.learning_rate:log:0.01..0.3")
    for seed in range(20):
        hp = _declared(space)
        hp.values = {item.name: item.random_sample(seed) for item in hp.space}
        there = keras_tuner.HyperParameters.from_proto(hp.to_proto())
        assert space.declare(there) == space.declare(hp)


@pytest.mark.parametrize("method", ["alone", "kd", "vid+at", "ackd:attention=logit", "mutual"])
def test_a_best_config_is_the_config_of_its_trial(method, tmp_path):
    teacher = tmp_path / "teacher.keras"
    teacher.touch()
    config = small_config(method)
    if methods.needs_teacher(config.method):
        config.teacher.path = str(teacher)
        config.teacher.mean = (0.5,)
    config.student.arguments.something = 2
    hp = _declared(SearchSpace(config))
    space = SearchSpace(config)
    wanted = space.config(*space.declare(hp))
    text = artefacts._best_config(wanted, "much", 'tfkd tune --search="a" \\', tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    teacher = teacher.rename(moved / "teacher.keras")
    (moved / "best_config.json").write_text(text, encoding="utf-8")
    found = tfkd.config.from_json(moved / "best_config.json")
    if methods.needs_teacher(wanted.method):
        wanted.teacher.model, wanted.teacher.path = "", str(teacher)
    assert found.to_dict() == wanted.to_dict()
    tfkd.config.check(found)


@pytest.mark.slow
def test_keras_tuners_own_tuners_search_it_too(searched, data_dir, tmp_path):
    """Students alone are in their checkpoints, and callbacks see and stop students."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert self.model.count_params() == plain().count_params()
            self.model.stop_training = True

    teacher = keras.models.load_model(searched / "teacher.keras")
    config = small_config("fitnet")
    config.epochs = 2
    students = tuner.HyperModel(config, teacher)
    stock = keras_tuner.RandomSearch(
        students, "val_accuracy", max_trials=1, seed=1, directory=tmp_path, project_name="stock"
    )
    stock.search(callbacks=[Stop()])
    best = stock.get_best_models()[0]
    trial = stock.oracle.get_best_trials()[0]
    data = students.data(config)
    assert measure.accuracy(best, data.validation) == pytest.approx(trial.score, abs=1e-6)
    file = next(tmp_path.rglob("checkpoint.weights.h5"))
    assert stored(file) == plain().count_params()


@pytest.mark.parametrize("kind", tuner.KINDS)
def test_of_equal_trials_the_first_is_the_best(kind):
    """In whatever order they are read: a search that goes on has the best that it had."""
    oracle = tuner.KINDS[kind](objective=keras_tuner.Objective("val_accuracy", "max"))
    for name, score in (("10", 0.5), ("2", 0.5), ("3", 0.4)):
        values = keras_tuner.HyperParameters()
        trial = keras_tuner.engine.trial.Trial(values, name, status="COMPLETED")
        trial.score = score
        oracle.trials[name] = trial
    assert [trial.trial_id for trial in oracle.get_best_trials(3)] == ["2", "10", "3"]


@pytest.mark.slow
def test_a_trial_that_diverges_is_one_at_chance(data_dir, tmp_path, capsys):
    config = small_config("alone")
    # Several steps: the first one only makes weights that the second one cannot bear.
    config.data.batch_size = 16
    students = tuner.HyperModel(
        config,
        search="optimizer.learning_rate:1e30..1e31",
    )
    hopeless = tuner.create("bayesian", students, tmp_path / "search", max_trials=1)
    hopeless.search()
    (row,) = hopeless.rows()
    assert row["score"] == pytest.approx(0.1) and row["diverged"] == 1
    with pytest.raises(UsageError, match="has left no student"):
        hopeless.get_best_models()
    given = [SMALL[0].replace("method=kd", "method=alone"), *SMALL[1:], data_dir, "--max_trials=1"]
    given += ["--search=optimizer.learning_rate:1e30..1e31", f"--workdir={tmp_path / 'all'}"]
    assert "No trial came through" in refused(capsys, tune.main, *given)
    assert not (tmp_path / "all" / "best_config.json").exists()


@pytest.mark.slow
def test_an_interrupted_search_ends_as_one_that_was_not(search, tmp_path, monkeypatch, capsys):
    """In the second epoch of the second seed of the second trial, and in the first trial."""
    longer = [*search, "--config.epochs=2", "--executions_per_trial=2"]
    call(tune.main, *longer, f"--workdir={tmp_path / 'one'}")
    begin = fitting.Progress.on_epoch_begin
    for when in (2, 7):
        begun = []

        def interrupt(self, epoch, logs=None, when=when, begun=begun):
            if "search" in self.folder.parts:
                begun.append(epoch)
            if len(begun) == when:
                raise KeyboardInterrupt
            begin(self, epoch, logs)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(fitting.Progress, "on_epoch_begin", interrupt)
            call(tune.main, *longer, f"--workdir={tmp_path / 'two'}")
        assert "the same command resumes" in capsys.readouterr().err
    call(tune.main, *longer, f"--workdir={tmp_path / 'two'}")
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out
    one, two = (
        [{key: row[key] for key in row if key != "seconds"} for row in table(tmp_path / name)]
        for name in ("one", "two")
    )
    assert one == two
    for path in (tmp_path / "one" / "search").rglob("student.keras"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        weights = [keras.models.load_model(file).get_weights() for file in (path, other)]
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_hyperband_picks_among_whole_runs(data_dir, tmp_path):
    call(
        tune.main,
        *SMALL,
        data_dir,
        "--config.epochs=4",
        "--tuner=hyperband",
        "--factor=2",
        f"--workdir={tmp_path}",
    )
    rows = table(tmp_path)
    assert {row["epochs"] for row in rows} == {"1", "2", "4"}
    for row in rows:
        folder = tmp_path / "search" / f"trial_{row['trial']}" / "execution_0"
        assert len(work_directory.history(folder)) == int(row["epochs"])
    best = json.loads((tmp_path / "tuner.json").read_text(encoding="utf-8"))["best"]
    whole = [float(row["score"]) for row in rows if row["epochs"] == "4"]
    assert best["epochs"] == 4 and best["score"] == max(whole)
    assert tfkd.config.from_json(tmp_path / "best_config.json").epochs == 4


@pytest.mark.slow
def test_two_workers_search_for_a_chief(search, data_dir, tmp_path, capsys):
    """As users start them: three processes, of which the last one began first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
    }
    command = [sys.executable, "-m", "tfkd.tune", *search[:-1], "--max_trials=4"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = {
        name: subprocess.Popen(
            [*command, f"--workdir={tmp_path}"],
            env={**shared, "KERASTUNER_TUNER_ID": name},
            **pipes,
        )
        for name in ("worker1", "worker0", "chief")
    }
    printed = {name: process.communicate(timeout=500) for name, process in processes.items()}
    for name, process in processes.items():
        assert process.returncode == 0, printed[name][1]
    assert "waiting until the chief" in printed["worker1"][0]
    assert "best of 4 trials" in printed["chief"][0]
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["completed"] * 4
    assert all((tmp_path / f"search/trial_{row['trial']}/student.keras").exists() for row in rows)
    assert sum("training the teacher" in output for output, _ in printed.values()) == 1
    # One process alone goes on with it, and finds nothing left to do.
    call(tune.main, *search[:-1], "--max_trials=4", f"--workdir={tmp_path}")
    assert "epoch 1/1" not in capsys.readouterr().out
    # Both have worked, and on other trials.
    trained = [printed[name][0].count("epoch 1/1") for name in ("worker0", "worker1")]
    assert sum(trained) == 4 and min(trained) > 0
    best = json.loads((tmp_path / "tuner.json").read_text(encoding="utf-8"))["best"]
    call(
        compare.main,
        f"--config={tmp_path}/best_config.json",
        data_dir,
        "--methods=kd",
        "--seeds=1",
        f"--workdir={tmp_path / 'again'}",
    )
    (row,) = json.loads((tmp_path / "again" / "table.json").read_text(encoding="utf-8"))
    assert row["validation_accuracy"] == pytest.approx(best["score"], abs=1e-6)


def test_trials_are_drawn_over_numbers_and_words(tmp_path):
    scores = [0.5, 0.7, 0.6, 0.8]
    values = {
        "rate": [0.001, 0.01, 0.1, 1.0],
        "method": ["kd", "at", "kd", "at"],
        "weight": [None, 5.0, None, 50.0],
        "nesterov": [True, False, True, True],
    }
    plots.trials(tmp_path / "trials.png", scores, values, "accuracy", ["rate"])
    picture = pyplot.imread(tmp_path / "trials.png")
    # Four panels of 4.2 inches, and a second line for the fifth.
    assert picture.shape[:2] == (792, 1848)
    assert not pyplot.get_fignums()
