"""Tells what a loss, method, model or data set is.

    python -m tfkd.describe at

Without a name it lists all that exist.
"""

import functools
import inspect
import re

import tensorflow_datasets as tfds

import tfkd_cli
from tfkd import command_line, data, distillers, losses, models, taps
from tfkd.data.sources import KNOWN
from tfkd.errors import UsageError, did_you_mean, near
from tfkd.methods import ALONE
from tfkd.models.families import FAMILIES

#: What a model is described for; the images are those that `create()` makes one for.
_CLASSES = 100

_ALONE = "trains the student on its labels, without a teacher: the baseline."


def describe(name=None):
    """Describes one name, or lists all names.

    Args:
        name: String: the id of a loss, model or data set, the class of a loss or distiller, or
            `"alone"`. None for the list.

    Returns:
        The description, a string of several lines.

    Raises:
        UsageError: If nothing has this name.

    Example:
    ```python
    print(describe("wrn_40_2"))
    ```
    """
    if name is None:
        return _list()
    pages = _pages()
    if name not in pages:
        # A method as configs write it: its losses and arguments have pages of their own.
        name = re.split("[+:]", name)[0]
    if name not in pages:
        meant = did_you_mean(near(name, pages))
        remedy = meant or "; python -m tfkd.describe lists all that exist."
        raise UsageError(f"Unknown name {name!r}{remedy}")
    return pages[name]()


def method_in_lines(name):
    """Returns what a method is, with a line for each of its parts.

    Args:
        name: String, a method as configs write it, such as `"sakd+at:at.weight=60.0"`.

    Returns:
        `{id: line}`, the method's first and then those of its losses.
    """
    known = {**distillers.available(), **losses.available()}
    ids = name.split(":")[0].split("+")
    # One of the user's own is known only where its module has been imported.
    lines = {
        one: _first_line(known[one]) if one in known else f"{one}: not of tfkd."
        for one in ids
        if one != ALONE
    }
    return lines or {ALONE: _ALONE.capitalize()}


def _pages():
    """Returns `{name: function that describes it}`."""
    pages = {ALONE: lambda: f"{ALONE} {_ALONE}"}
    for identifier, cls in losses.available().items():
        pages[identifier] = pages[cls.__name__] = functools.partial(_describe_loss, cls)
    for name, cls in _distillers().items():
        pages[name] = pages[cls.__name__] = functools.partial(_describe_distiller, cls)
    for family in FAMILIES:
        for identifier in family.MODELS:
            pages[identifier] = functools.partial(_describe_model, identifier, family)
    for name in data.available():
        pages[name] = functools.partial(_describe_data_set, name)
    return pages


def _distillers():
    """Returns `{id: class}` of the methods that are distillers, by its name where it has no id."""
    return {"KnowledgeDistiller": distillers.KnowledgeDistiller, **distillers.available()}


def _list():
    methods = {
        ALONE: _ALONE,
        "loss, loss+loss": "distils by one or several of the losses above, named by their ids.",
    }
    methods |= {name: _summary(cls) for name, cls in _distillers().items()}
    sections = {
        "Losses": _table(
            {identifier: _summary(cls) for identifier, cls in losses.available().items()}
        ),
        "Methods": _table(methods),
        "Models": "\n".join(
            f"  {_first_line(family)}\n" + _fill(" ".join(family.MODELS), "    ", "    ")
            for family in FAMILIES
        ),
        "Data sets": _table({name: _data_summary(name) for name in data.available()}),
    }
    listed = "\n\n".join(f"{title}\n{text}" for title, text in sections.items())
    return f"{listed}\n\nMore about one of them: python -m tfkd.describe NAME"


def _describe_loss(cls):
    needs = {
        "labels": cls.needs_labels,
        "the positions of the samples in the training set": cls.needs_indices,
        **{f"the {side}'s classifier": True for side in cls.needs_classifiers},
        "a stage before training": cls.preparation is not None,
        "the batch of all replicas": cls.relational,
    }
    facts = {
        "id": cls.id,
        "class": f"tfkd.losses.{cls.__name__}",
        "distils at": cls.spots + (f", teacher {cls.teacher_spots}" if cls.teacher_spots else ""),
        "takes taps": cls.tap_forms(),
        "needs": ", ".join(need for need, needed in needs.items() if needed),
        "arguments": _arguments(cls, losses.DistillationLoss),
    }
    return f"{_table(facts)}\n\n{inspect.getdoc(cls)}"


def _describe_distiller(cls):
    facts = {
        "id": cls.id or "",
        "class": f"tfkd.{cls.__name__}",
        "optimizers": ", ".join(["optimizer", *cls.extra_optimizers]),
        "arguments": _arguments(cls, distillers.Distiller),
    }
    return f"{_table(facts)}\n\n{inspect.getdoc(cls)}"


def _describe_model(identifier, family):
    model = models.create(identifier, _CLASSES)
    facts = {
        "id": identifier,
        "made by": f'tfkd.models.create("{identifier}", num_classes={_CLASSES})',
        "images": _size(model.input_shape[1:]),
        "parameters": f"{model.count_params():,}",
        "multiply-adds": f"{models.multiply_adds(model):,}",
    }
    tap_sizes = {tap: _size(shape[1:]) for tap, shape in taps.of(model).items()}
    references = inspect.getdoc(family.build).partition("References:\n")[2]
    return (
        f"{_table(facts)}\n\n{_first_line(family)}\n\nTaps:\n{_table(tap_sizes)}\n\n"
        f"References:\n{references}"
    )


def _describe_data_set(name):
    info, known = tfds.builder(name).info, KNOWN[name]
    sizes = [f"{split} {part.num_examples:,}" for split, part in info.splits.items()]
    facts = {
        "id": name,
        "made by": f'tfkd.data.load("{name}")',
        "images": _size(info.features["image"].shape),
        "classes": str(info.features["label"].num_classes),
        "examples": ", ".join(sizes) or "known once the data set is prepared, which load() does",
        "mean": ", ".join(map(str, known.mean)),
        "deviation": ", ".join(map(str, known.std)),
        "augmentation": ", ".join(known.augment),
        "homepage": info.homepage,
    }
    return f"{_table(facts)}\n\n{_fill(info.description)}"


def _data_summary(name):
    features = tfds.builder(name).info.features
    return f"{_size(features['image'].shape)} images, {features['label'].num_classes} classes"


def _size(shape):
    return "x".join("?" if size is None else str(size) for size in shape)


def _arguments(cls, base):
    """Returns the arguments of a class, and of the base it passes others on to, with defaults."""
    parameters = dict(inspect.signature(cls).parameters)
    if parameters.pop("kwargs", None):
        parameters |= {
            name: parameter
            for name, parameter in inspect.signature(base).parameters.items()
            if name not in parameters and name != "kwargs"
        }
    return ", ".join(map(str, parameters.values()))


def _first_line(documented):
    """Returns the first line of the docstring of a module or class.

    That of a class of tfkd is its module's, which holds one method or loss.
    """
    if inspect.isclass(documented) and documented.__module__.startswith("tfkd."):
        documented = inspect.getmodule(documented)
    return inspect.getdoc(documented).partition("\n")[0]


def _summary(cls):
    """Returns what the first line about a class says of what it names before the colon."""
    return _first_line(cls).rpartition(": ")[2]


def _table(rows):
    """Returns two columns; rows without a value are left out."""
    width = max(map(len, rows)) + 2
    return "\n".join(
        _fill(value, f"  {name:<{width}}", " " * (2 + width))
        for name, value in rows.items()
        if value
    )


def _fill(text, first_indent="", indent=""):
    return tfkd_cli.filled(text, indent, first_indent, width=100)


def main(names):
    """Prints what the command line asks for."""
    if len(names) > 1:
        raise UsageError(f"One name at a time, or none for the list; received {len(names)}.")
    print(describe(*names))


if __name__ == "__main__":
    command_line.main_without_config(main)
