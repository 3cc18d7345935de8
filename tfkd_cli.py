"""The command `tfkd`: what it can answer at once, and otherwise hands to `tfkd.__main__`.

It is outside of the package because importing that imports TensorFlow, which takes seconds.
"""

import ast
import difflib
import inspect
import pathlib
import shutil
import sys
import textwrap

#: The version, said here alone: setup.py and `tfkd.__version__` read it.
VERSION = "0.2.0"

#: Every command and what it does; each is the module of its name.
COMMANDS = {
    "init": "write a config of your own, to be edited",
    "train": "train a teacher and distil a student, or go on with a run that was interrupted",
    "compare": "run several methods over several seeds, and write one table",
    "chain": "train models one after the other, each taught by those before it",
    "tune": "search temperatures, weights and learning rates of a method",
    "check": "say what would spoil a run, before it is begun",
    "evaluate": "measure the models of a finished run again",
    "export": "write a student for use elsewhere, and measure what was written",
    "report": "make a web page of one or more finished runs",
    "studies": "keep results of studies as data, and write tables and pictures from them",
    "local_workers": "start several workers on this machine, which train as one",
    "describe": "tell what a method, loss, model or data set is",
}

_HELP = ("-h", "--help", "-help", "--helpshort", "--helpfull", "help")

_HERE = pathlib.Path(__file__).parent

#: The config that `tfkd init` copies where none is named.
_FIRST_CONFIG = "image_folder"


def configs():
    """Returns `{name: path}` of the configs that come with tfkd, such as `"digits"`."""
    # Installed, they are within the package; in a checkout they stand beside it.
    folder = next(path for path in (_HERE / "tfkd" / "configs", _HERE / "configs") if path.is_dir())
    paths = sorted(folder.rglob("*.py"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def usage():
    """Returns what `tfkd --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "tfkd: TensorFlow/Keras Knowledge Distillation",
            "",
            "usage: tfkd COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "tfkd COMMAND --help shows the flags of a command, tfkd --version the version. To",
            "begin with (half a minute, no download):",
            "",
            "  tfkd train --config=digits:method=kd --workdir=runs/first",
            "  tfkd report --workdir=runs/first",
        ]
    )


def wants_help(arguments):
    """Whether a command is asked for its flags; what follows `--` is for another one."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return any(argument in _HELP for argument in arguments[:end])


def help_of(command):
    """Returns what `tfkd COMMAND --help` prints: what the command is for, and its flags.

    The sources are read, not imported.

    Args:
        command: String, one of `COMMANDS`.
    """
    package = _HERE / "tfkd"
    files = (package / "commands" / f"{command}.py", package / command / "__main__.py")
    tree = _parsed(next(path for path in files if path.is_file()))
    shared = _parsed(package / "command_line.py")
    of_all = _flags(shared)
    called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if not any("adopt_module_key_flags" in call for call in called):
        names = [name for name in of_all if f"flags.declare_key_flag({name!r})" in called]
        if "flags.declare_key_flag(name)" in called:
            names = _constant(shared, "OF_FINISHED_RUNS")
        of_all = {name: of_all[name] for name in names}
    text = inspect.cleandoc(ast.get_docstring(tree)).replace("python -m tfkd.", "tfkd ")
    paragraphs = text.split("\n\n")
    # Commands, which are indented, stay as they are.
    lines = ["\n\n".join(part if part[0] == " " else filled(part) for part in paragraphs)]
    for title, found in (("Flags:", _flags(tree)), ("Flags of several commands:", of_all)):
        if found:
            lines += ["", title]
        for name, text in found.items():
            lines += [f"  --{name}", filled(text, "      ")]
    return "\n".join(lines)


def filled(text, indent="", first_indent=None, width=80):
    """Returns a paragraph in lines of some width, whose words and flags stay in one piece."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent if first_indent is None else first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _constant(tree, name):
    """Returns the value of a constant that a module assigns."""
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    return ast.literal_eval(next(a.value for a in assigned if ast.unparse(a.targets[0]) == name))


def _flags(tree):
    """Returns `{name: help}` of the flags that a module defines, with their plain defaults."""
    found = {}
    for node in ast.walk(tree):
        name = node.func.attr if isinstance(getattr(node, "func", None), ast.Attribute) else ""
        if not name.startswith("DEFINE_"):
            continue
        flag, default, *_ = node.args
        text = node.args[3 if name == "DEFINE_enum" else 2].value
        boolean = name in ("DEFINE_bool", "DEFINE_boolean")
        if isinstance(default, ast.Constant) and default.value not in (None, False, ""):
            text += f" (default: {default.value})"
        found["[no]" * boolean + flag.value] = text
    return found


def init(arguments):
    """Writes a config of the user's own: a copy of one that comes with tfkd.

    Args:
        arguments: List of strings: the directory, and the name of a config if not `image_folder`.

    Returns:
        The exit code.
    """
    folder, name, *more = [*arguments, None, None][: max(2, len(arguments))]
    name, known = name or _FIRST_CONFIG, configs()
    mistake = None
    if folder is None or more or folder.startswith("-"):
        mistake = "tfkd init takes a directory, and the name of a config: tfkd init photos"
    elif name not in known:
        near = difflib.get_close_matches(name, known, 1)
        mistake = f"Unknown config {name!r}: it must be one of {', '.join(known)}"
        mistake += f"; did you mean {near[0]!r}?" if near else "."
    elif (path := pathlib.Path(folder, "config.py")).exists():
        mistake = f"{path} is there already: choose another directory."
    if mistake is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(known[name], path)
        except OSError as error:
            mistake = f"{path} cannot be written: {error.strerror}."
    if mistake is not None:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    print(
        f"Written: {path}, which is {name} of tfkd: edit it. Then\n\n"
        f"  tfkd check --config={path}\n"
        f"  tfkd train --config={path} --workdir={path.parent / 'run'}"
    )
    return 0


def main():
    """Runs the command line."""
    first, *rest = sys.argv[1:] or ["--help"]
    if first in _HELP:
        print(usage())
    elif first == "--version":
        print(f"tfkd {VERSION}")
    elif first in COMMANDS and wants_help(rest):
        print(help_of(first))
    elif first == "init":
        sys.exit(init(rest))
    else:
        from tfkd.__main__ import run_command

        run_command(first)
