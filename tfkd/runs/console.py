"""What runs print: what they begin with, a line for each epoch, and the result."""

import shlex
import shutil
import sys
import time

import keras

from tfkd import runtime

#: Columns of a line, where the terminal has no fewer.
_WIDTH = 80

#: Seconds between two looks of the line at a terminal.
_INTERVAL = 0.2

#: The logs that a line shows, and how.
_LOGS = {"loss": "loss {:.4g}", "accuracy": "accuracy {:.1%}", "val_accuracy": "validation {:.1%}"}


def say(text):
    """Prints a line at once, also where the output is a pipe."""
    print(text, flush=True)


def duration(seconds):
    """Returns a duration as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def begun(config, data, teacher, student):
    """Returns what a run begins with, as lines: data, models, method.

    Args:
        config: `ConfigDict` of the run.
        data: Its `tfkd.data.Data`.
        teacher: `keras.Model`, or None.
        student: `keras.Model`.
    """
    size = "x".join(map(str, data.input_shape))
    sizes = ", ".join(f"{name} {count:,}" for name, count in data.sizes.items())
    lines = [f"data: {config.data.name}, {size}, {data.num_classes} classes; {sizes}"]
    if teacher is not None:
        name = config.teacher.path or config.teacher.model
        told = ""
        if data.of_teacher is not data:
            size = "x".join(map(str, data.of_teacher.input_shape))
            told = f", images of {size} cut from the original"
        lines.append(f"teacher: {name}, {teacher.count_params():,} parameters{told}")
    lines.append(f"student: {config.student.model}, {student.count_params():,} parameters")
    precision = keras.config.dtype_policy().name
    lines.append(f"method: {config.method.name}, {config.epochs} epochs, {precision}")
    return "\n".join(lines)


def result(summary, workdir):
    """Returns what a finished run has reached, as lines, and what could be done next.

    Args:
        summary: Dictionary, the run's `summary.json`.
        workdir: Path of its work directory.
    """
    select, lines = summary["config"]["select"], []
    if "teacher" in summary and summary["teacher"]["test_accuracy"] is not None:
        lines.append(f"teacher: test accuracy {summary['teacher']['test_accuracy']:.2%}")
    for name, found in {"student": summary["student"], **summary["learners"]}.items():
        last, best = found["last"], found["best"]
        text = f"{name}: test accuracy {last['test_accuracy']:.2%} (last epoch)"
        if best["epoch"] != last["epoch"]:
            text += f", {best['test_accuracy']:.2%} (epoch {best['epoch']}, best in validation)"
        lines.append(text)
    if select == "best":
        lines.append("saved: the epoch that is best in validation")
    models = ", ".join(f"{name}.keras" for name in ("student", *summary["learners"]))
    # Paths as one can paste them.
    folder = shlex.quote(str(workdir))
    lines += [
        f"trained in {duration(summary['training_seconds'])}; in {folder}:",
        f"  {models}, summary.json, metrics.csv, curves.png",
        "next:",
        f"  tfkd report --workdir={folder}",
        f"  tfkd export --workdir={folder} --format=tflite",
    ]
    return "\n".join(lines)


class EpochLines(keras.callbacks.Callback):
    """Shows each epoch in a line, which a terminal sees change as long as the epoch lasts.

    Args:
        progress: The `Progress` of the run, which stands before it among the callbacks.
        data: The `tfkd.data.Data`.
    """

    def __init__(self, progress, data):
        super().__init__()
        self._progress, self._data = progress, data
        self._live = sys.stdout.isatty()
        self._columns = min(_WIDTH, shutil.get_terminal_size().columns) - 1
        self._shown = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock of the epoch."""
        self._epoch, self._begun = epoch, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Renews the line at a terminal, now and then."""
        now = time.perf_counter()
        if not self._live or now - self._shown < _INTERVAL or not runtime.is_chief():
            return
        self._shown = now
        steps, seconds = self._data.steps_per_epoch, now - self._begun
        speed = (batch + 1) * self._data.batch_size / seconds
        epochs = self.params["epochs"] - self._epoch - (batch + 1) / steps
        left = epochs * seconds * steps / (batch + 1)
        line = self._line(logs or {}, speed, left, f"step {batch + 1}/{steps}")
        print(f"\r{line:<{self._columns}}", end="", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        """Shows the epoch's line as it remains."""
        if not runtime.is_chief():
            return
        seconds = time.perf_counter() - self._begun
        left = (self.params["epochs"] - epoch - 1) * seconds
        line = self._line(logs or {}, self._progress.speeds[-1], left)
        say(f"\r{line:<{self._columns}}" if self._live else line)

    def _line(self, logs, speed, left, *more):
        """Returns as much as fits, what matters least being left out first."""
        parts = [f"epoch {self._epoch + 1}/{self.params['epochs']}", *more]
        parts += [text.format(float(logs[name])) for name, text in _LOGS.items() if name in logs]
        dispensable = [f"{speed:,.0f} images/s"]
        if left:
            dispensable.append(f"{duration(left)} left")
        while dispensable and len("  ".join(parts + dispensable)) > self._columns:
            del dispensable[0]
        return "  ".join(parts + dispensable)[: self._columns]
