"""Kills training runs at random moments, resumes them and compares all weights.

    python benchmarks/kills.py [--kills=20] [--methods=alone,kd,...] [--seed=0] [--workdir=DIR]
        [--output=FILE.json]

Each method is trained once without interruption, by `python -m tfkd.train` with tiny models on
digits. Further runs of the same command are then killed with SIGKILL, two or three times each,
and started again. A kill comes at a random time after the start of training, at a random time of a
random epoch, or as soon as a file is being written in one. What must be equal, bit for bit: every
saved model, and every array of the last checkpoints, which are the weights of all networks, the
state of all optimizers and of all random generators.

Prints a table, and ends with exit code 1 where anything differs. `--output` keeps the table as
data, from which `tfkd studies` writes that of the page.
"""

import dataclasses
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

METHODS = "alone,kd,kd+at,ft,crd,ackd,sakd+at,iakd,mutual,acn:warm_up=2:adversarial_every=2"

flags.DEFINE_integer("kills", 20, "How many kills, shared out among the methods.", 1)
flags.DEFINE_string("methods", METHODS, "Methods, as in configs, separated by commas.")
flags.DEFINE_integer("seed", 0, "Decides when runs are killed.")
flags.DEFINE_string(
    "workdir",
    None,
    "Where runs are kept, for the next call to use; a temporary directory if not given.",
)
flags.DEFINE_string("output", None, "JSON file for the results, such as docs/results/kills.json.")

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[1]
HEADER = ("method", "killed after", "in", "resumed after", "weights equal")


@dataclasses.dataclass
class Kill:
    """One kill.

    Attributes:
        method: String.
        when: String, at what time or during the writing of which file.
        where: String, what the run had said last.
        resumed: String, what the next process said of it.
        equal: Boolean, whether the run ended as the uninterrupted one; None until it has.
    """

    method: str
    when: str
    where: str
    resumed: str = ""
    equal: bool | None = None


def command(method, workdir, data_dir, teacher):
    """Returns the command of a run of a few seconds."""
    settings = {
        "epochs": 5,
        "teacher.epochs": 4,
        "method.preparation_epochs": 3,
        "data.train_examples": 256,
        "check": False,
        "select": "best",
    }
    config = f"{ROOT}/configs/digits.py:method={method},teacher={teacher},student=resnet8"
    return [
        *(sys.executable, "-m", "tfkd.train", f"--config={config}", f"--workdir={workdir}"),
        f"--data_dir={data_dir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


class Process:
    """A run in a process of its own, with what it prints."""

    def __init__(self, arguments, workdir):
        self.workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        self._log = workdir.with_name(f"{workdir.name}.log")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def running(self):
        """Whether the process has not ended."""
        return self._process.poll() is None

    def begun(self):
        """Whether training has begun, as far as files tell."""
        return (self.workdir / "config.json").exists()

    def being_written(self):
        """Returns the names of the files that are being written."""
        return [path.name.split(".", 3)[-1] for path in self.workdir.rglob(".*.partial.*")]

    def kill(self):
        """Kills it; returns what it printed."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return self.output()

    def finish(self):
        """Waits until it ends, and returns what it printed."""
        if self._process.wait() != 0:
            raise RuntimeError(f"{self._process.args} failed:\n{self.output()}")
        return self.output()

    def output(self):
        """Returns all lines printed so far."""
        return self._log.read_text().splitlines()


def interrupted(method, arguments, workdir, seconds, moments, kills):
    """Runs a command until it ends, and kills it up to so many times in between.

    Args:
        method: String, for the table.
        arguments: The command.
        workdir: Path.
        seconds: Number, how long training takes without interruption.
        moments: A `random.Random`.
        kills: Integer.

    Returns:
        A list of the `Kill`s that came in time.
    """
    done = []
    while len(done) < kills:
        process = Process(arguments, workdir)
        when = _strike(process, seconds, moments)
        lines = process.finish() if when is None else process.kill()
        if done:
            done[-1].resumed = _resumed(lines)
        if when is None:
            return done
        done.append(Kill(method, when, _last(lines)))
    done[-1].resumed = _resumed(Process(arguments, workdir).finish())
    return done


def _strike(process, seconds, moments):
    """Waits for a random moment to kill a process; returns it in words, None if it ends before."""
    kind = moments.choice(("time", "epoch", "epoch", "file"))
    epoch, delay = moments.randint(1, 5), moments.uniform(0, 0.5)
    while process.running() and not (
        process.begun() if kind == "time" else _epochs(process.output())[-1:] >= [epoch]
    ):
        time.sleep(0.01)
    begun, wait = time.perf_counter(), moments.uniform(0, seconds) if kind == "time" else delay
    while process.running():
        passed = time.perf_counter() - begun
        if kind == "file" and (names := process.being_written()):
            return f"writing {names[0]}"
        if kind != "file" and passed >= wait:
            return f"{passed:.2f} s" + f" of epoch {epoch}" * (kind == "epoch")
        time.sleep(0.0 if kind == "file" else 0.01)
    return None


#: The stages, by their number of epochs in `command`.
_STAGES = {"4": "teacher", "3": "preparation", "5": "student"}


#: What is printed where a stage begins.
_BEGIN = {"training the teacher": "4", "preparing loss": "3", "training the student": "5"}


def _begun(lines):
    """Returns `(epoch, epochs of its stage)` of those that have begun, the latter a string."""
    found = []
    for line in lines:
        ended = re.match(r"(?:resuming after )?epoch (\d+)(?:/| of )(\d+)", line)
        if ended and int(ended[1]) < int(ended[2]):
            found.append((int(ended[1]) + 1, ended[2]))
        found += [(1, epochs) for begin, epochs in _BEGIN.items() if line.startswith(begin)]
    return found


def _epochs(lines):
    """Returns the epochs of the student's that have begun."""
    return [epoch for epoch, epochs in _begun(lines) if epochs == _BEGIN["training the student"]]


def _last(lines):
    """Says in which epoch of which stage a run was."""
    found = _begun(lines)
    return f"{_STAGES[found[-1][1]]} epoch {found[-1][0]}" if found else "before any epoch"


def _resumed(lines):
    """Says after which epoch of which stage the next process went on."""
    found = [re.match(r"resuming after epoch (\d+) of (\d+)", line) for line in lines]
    found = [match for match in found if match]
    if any(line.endswith("complete.") for line in lines):
        return "complete"
    return f"{_STAGES[found[-1][2]]} epoch {found[-1][1]}" if found else "the start"


def same(one, other):
    """Returns whether two work directories hold the same models and the same state, to the bit."""
    import keras

    for path in sorted(one.glob("*.keras")):
        weights = [keras.models.load_model(d / path.name).get_weights() for d in (one, other)]
        if not _equal(*weights):
            return False
    for path in sorted(one.rglob("checkpoint.npz")):
        states = [np.load(directory / path.relative_to(one)) for directory in (one, other)]
        names = [name for name in states[0].files if name != "header"]
        if names != [name for name in states[1].files if name != "header"]:
            return False
        if not _equal(*([state[name] for name in names] for state in states)):
            return False
    return True


def _equal(arrays, others):
    return len(arrays) == len(others) and all(np.array_equal(a, b) for a, b in zip(arrays, others))


def kill_all(methods, kills, seed, workdir):
    """Kills runs of all methods.

    Args:
        methods: List of methods, as in configs.
        kills: Integer, how many in all.
        seed: Integer, which decides when.
        workdir: Path.

    Returns:
        A list of `Kill`s.
    """
    moments = random.Random(seed)
    data_dir, teacher = workdir / "tfds", "resnet14"
    whole, done = {}, {method: [] for method in methods}
    for method in methods:
        folder = workdir / f"{method.replace(':', '-')}-whole"
        # One of an earlier call in the same directory serves as well.
        Process(command(method, folder, data_dir, teacher), folder).finish()
        summary = json.loads((folder / "summary.json").read_text())
        # Of the student alone, to which a teacher's training and building come.
        whole[method] = (folder, 3 * summary["training_seconds"], teacher)
        if method != "alone" and teacher == "resnet14" and (folder / "teacher.keras").exists():
            # The first method with a teacher trains it, and is killed while it does.
            teacher = folder / "teacher.keras"
    number = 0
    while (total := sum(map(len, done.values()))) < kills:
        method = min(reversed(methods), key=lambda name: len(done[name]))
        folder, seconds, teacher = whole[method]
        number += 1
        again = workdir / f"{method.replace(':', '-')}-killed{number}"
        arguments = command(method, again, data_dir, teacher)
        wanted = min(moments.randint(2, 3), kills - total)
        found = interrupted(method, arguments, again, seconds, moments, wanted)
        equal = same(folder, again)
        for kill in found:
            kill.equal = equal
            print(" | ".join(_cells(kill)), flush=True)
        done[method] += found
        if equal:
            shutil.rmtree(again)
    return [kill for method in methods for kill in done[method]]


def _cells(kill):
    return (kill.method, kill.when, kill.where, kill.resumed, "yes" if kill.equal else "NO")


def table(kills):
    """Returns kills as a Markdown table."""
    rows = [HEADER, ("---",) * len(HEADER), *map(_cells, kills)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(_):
    """Runs what the flags say."""
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(FLAGS.workdir or temporary)
        kills = kill_all(FLAGS.methods.split(","), FLAGS.kills, FLAGS.seed, workdir)
    equal = sum(kill.equal for kill in kills)
    print(f"\n{table(kills)}\n\n{equal} of {len(kills)} equal")
    if FLAGS.output:
        from tfkd.runs import measurements

        title = f"{equal} of {len(kills)} killed runs end as those left alone"
        columns = dict.fromkeys(HEADER, "")
        measurements.write(FLAGS.output, title, columns, [list(_cells(kill)) for kill in kills])
    sys.exit(equal < len(kills))


if __name__ == "__main__":
    app.run(main)
