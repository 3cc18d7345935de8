"""What the commands share: their flags, and mistakes answered by one line."""

import importlib
import os
import pathlib
import re
import shlex
import sys

import tensorflow as tf
from absl import flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

import tfkd_cli
from tfkd import errors, runtime
from tfkd.config import find, flatten, from_json
from tfkd.errors import UsageError
from tfkd.methods import TEACHER_IMAGES

#: Exit codes: of a mistake in what the user gave, and of Ctrl-C as shells expect it.
MISTAKE, INTERRUPTED = errors.MISTAKE, errors.INTERRUPTED


class _ConfigParser(ConfigFileFlagParser):
    """Reads a config from JSON where the file is no Python."""

    def parse(self, path):
        """Returns the config of a file, locked as those of Python files are."""
        file, colon, arguments = path.partition(":")
        file = find(file)
        if not file.endswith(".json"):
            return super().parse(f"{file}{colon}{arguments}")
        if colon:
            raise UsageError(
                f"{file} takes no arguments after a colon, such as {arguments}: values of it are "
                "set by --config.KEY=..."
            )
        return from_json(file).lock()


class _ParserOrNone(flags.ArgumentParser):
    """Parses a value, or `None`: the config's own value is taken away, as by a Python file."""

    def __init__(self, parser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self):
        return self._parser.flag_type()


for kind, parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
    config_flags.register_flag_parser_for_type(kind, _ParserOrNone(parser))

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config that comes with tfkd, such as digits, or Python file with get_config(arguments); "
    "arguments follow a colon: digits:method=kd,student=resnet8. Or the config.json of a run, or "
    "the best_config.json of a search. Any value of it can be set by a flag: --config.epochs=3",
)
flags.FLAGS["config"].parser = _ConfigParser("config")
flags.DEFINE_string("workdir", None, "Directory of everything that is read and written.")
flags.DEFINE_string("data_dir", None, "Directory of TFDS data sets; TFDS' default if not given.")
flags.DEFINE_list(
    "imports",
    [],
    "Modules of yours to import first: those that define and register layers in saved models.",
)
# No enum: runtime.strategy says why some are not supported.
flags.DEFINE_string(
    "strategy",
    "auto",
    "How to use devices: auto, one_device, mirrored, multi_worker, tpu; auto: the workers that "
    "TF_CONFIG lists, or all GPUs of this machine.",
)
flags.DEFINE_integer(
    "replicas", None, "Devices to mirror over: GPUs, or where there are none logical CPUs.", 1
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ("auto", *runtime.PRECISIONS),
    "The policy models are built in: auto, float32, mixed_bfloat16, mixed_float16; auto: "
    "mixed_bfloat16 where the devices compute in it. The teacher may have another one: "
    "--config.teacher.precision.",
)
flags.DEFINE_bool(
    "deterministic",
    True,
    "Whether the same command gives the same bits, resumed or not; --nodeterministic lets "
    "TensorFlow choose faster operations (docs/resume.md).",
)
flags.DEFINE_bool(
    "fused_batch_norm",
    True,
    "Whether batch normalization is one fused operation, which is faster; --nofused_batch_norm "
    "runs that of Keras.",
)


# Flags of commands with a config.
_OF_TRAINING = (
    "config",
    "strategy",
    "replicas",
    "precision",
    "deterministic",
    "fused_batch_norm",
)
#: Flags of commands that read what a run left, and need no config.
OF_FINISHED_RUNS = ("workdir", "data_dir", "imports")


def main(run, needs_workdir=True):
    """Runs a command with a config as its flags say, and ends the process where that is wrong.

    Args:
        run: Function that takes the config and does the work. It is called in the scope of the
            strategy.
        needs_workdir: Boolean, whether `--workdir` must be given.
    """
    try:
        with errors.exit_on_usage_error():
            _parse_with_config(needs_workdir)
            precision = runtime.set_precision(flags.FLAGS.precision)
            runtime.set_determinism(flags.FLAGS.deterministic)
            runtime.set_fused_batch_normalization(flags.FLAGS.fused_batch_norm)
            with (
                runtime.strategy(flags.FLAGS.strategy, flags.FLAGS.replicas).scope(),
                runtime.folder_of_worker(flags.FLAGS.workdir) as flags.FLAGS.workdir,
            ):
                if runtime.is_chief():
                    print(runtime.describe_devices(), flush=True)
                    if flags.FLAGS.precision == "auto":
                        print(f"precision: {precision} suits them", flush=True)
                run(_CONFIG.value)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def main_without_config(run):
    """Runs a command that trains nothing, and ends the process where something is wrong.

    Args:
        run: Function that takes the list of arguments which are no flags, and does the work.

    Example:
    ```python
    for name in command_line.OF_FINISHED_RUNS:
        flags.declare_key_flag(name)

    if __name__ == "__main__":
        command_line.main_without_config(evaluate)
    ```
    """
    try:
        with errors.exit_on_usage_error():
            _answer_help()
            try:
                rest = flags.FLAGS(sys.argv)[1:]
            except flags.Error as error:
                raise UsageError(str(error)) from error
            for name in _OF_TRAINING:
                if flags.FLAGS[name].present:
                    raise UsageError(f"--{name} is no flag of this command; see --help.")
            _set_up()
            run(rest)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _answer_help():
    """Shows the flags of the command that runs now, if it is asked to, and ends the process."""
    path = pathlib.Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.stem
    if name in tfkd_cli.COMMANDS and tfkd_cli.wants_help(sys.argv[1:]):
        print(tfkd_cli.help_of(name))
        sys.exit()


def command(module):
    """Returns the command that runs now, as a user could type it.

    Args:
        module: String, the command's module, such as `"train"`.
    """
    return shlex.join(["python", "-m", f"tfkd.{module}", *sys.argv[1:]])


def _set_up():
    """Imports the user's modules; silences TFDS and says where it keeps data sets.

    That holds for this process and those that it starts.
    """
    for module in flags.FLAGS.imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"--imports={module} cannot be imported ({error}): it must be in the current "
                "directory, or in one of PYTHONPATH."
            ) from error
    if flags.FLAGS.data_dir:
        os.environ["TFDS_DATA_DIR"] = flags.FLAGS.data_dir
    # Stages, trials and models have functions of their own, each of which is traced: TensorFlow
    # warns of that as of a mistake.
    tf.get_logger().setLevel("ERROR")
    if not flags.FLAGS["verbosity"].present:
        # TFDS tells every file it opens.
        logging.set_verbosity(logging.ERROR)


def _parse_with_config(needs_workdir):
    """Reads the flags, for which absl also runs the config file."""
    _answer_help()
    try:
        errors.check_no_arguments(flags.FLAGS(sys.argv)[1:])
        if _CONFIG.value is None:
            raise UsageError(
                "--config is missing: a file, or a config of tfkd, as --config=digits."
            )
        if needs_workdir and not flags.FLAGS.workdir:
            raise UsageError("--workdir=DIR is missing: where everything is read and written.")
        # A file that is not there shows only when its values are asked for.
        getattr(_CONFIG.value, "keys", None)
        if not isinstance(_CONFIG.value, ConfigDict):
            raise UsageError(
                "--config: get_config must return an ml_collections.ConfigDict; it returned a "
                f"{type(_CONFIG.value).__name__}."
            )
    except Exception as error:
        # ml_collections lets through whatever the file raises, and wraps it with its traceback.
        raise UsageError(_reason(error)) from error
    _set_up()


_DEVICES = (
    "devices are chosen by --strategy and --replicas, and which GPUs TensorFlow sees by the "
    "environment, CUDA_VISIBLE_DEVICES=0 in front of the command"
)
_PICKED = "it is picked after the colon of --config, as in configs/digits.py:"

#: What people look for under names that there are not, and what there is instead.
_INSTEAD = {
    **dict.fromkeys(("cpu", "cuda", "device", "devices", "gpu", "gpus", "num_gpus"), _DEVICES),
    "preprocessing": TEACHER_IMAGES,
    "teacher_preprocessing": TEACHER_IMAGES,
    "method": f"{_PICKED}method=kd",
    "teacher": f"{_PICKED}teacher=resnet20",
    "student": f"{_PICKED}student=resnet8",
}


def _meant(name):
    """Returns the end of a sentence: what the user of a flag that there is not may have meant."""
    if name in _INSTEAD:
        return f": {_INSTEAD[name]}."
    config = flags.FLAGS["config"].value
    # Another type stands for a file that could not be read.
    keys = flatten(config.to_dict()) if type(config) is ConfigDict else {}
    fits = [
        f"--config.{key}"
        for key in keys
        # Its settings are what other methods would begin with.
        if key.split(".")[-1] == name and not key.startswith("settings.")
    ]
    if fits:
        return f": values of the config are set as {' or '.join(f'{key}=...' for key in fits)}"
    ours = [
        flag.name
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        # Those of the libraries are nobody's wish.
        if not module.startswith("tensorflow")
        for flag in defined
        if not flag.name.startswith("config.")
    ]
    meant = errors.did_you_mean(f"--{one}" for one in errors.near(name, ours))
    return meant or ": --help shows all; values of the config are set as --config.KEY=..."


def _reason(error):
    """Returns the line that says what was wrong, out of an error that may be many lines long."""
    text = str(error.args[0] if error.args else type(error).__name__).strip()
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"Unknown command line flag {error.flagname!r}{_meant(error.flagname)}"
    if "has no attribute 'get_config'" in text:
        return "--config names a file without a function get_config; configs/ has some with it."
    part = re.search(r"flag --(config\.\S+)=.*Failed to parse .* as a ConfigDict", text)
    if part:
        picked = " (a method is picked by --config=FILE:method=...)" * (part[1] == "config.method")
        return f"--{part[1]} has values of its own: set one of them, --{part[1]}.NAME=...{picked}"
    if isinstance(error, (AttributeError, KeyError)):
        text = re.sub(r"[\"'\\]+", "", text.replace("\\n", " "))
        if text in _INSTEAD:
            return f"--config has no such value: {text}; {_INSTEAD[text]}."
        return f"--config has no such value: {text} (the config.json of any run shows all of them)"
    if isinstance(error, SyntaxError):
        return f"--config: {error.msg} in line {error.lineno} of {error.filename}"
    if isinstance(error, OSError) or "Traceback" in text:
        # "package.module.Error: what was wrong"
        text = re.sub(r"^[\w.]*Error: ", "", text.splitlines()[-1].strip())
    if isinstance(error, (UsageError, flags.Error)):
        return text
    if not isinstance(error, (OSError, ValueError)):
        text = f"{type(error).__name__}: {text}"
    return f"--config: {text}"
