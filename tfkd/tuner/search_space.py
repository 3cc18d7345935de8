"""What a search for hyperparameters may change in a config, and between which limits."""

import ast
import contextlib
import copy
import dataclasses
import difflib
import math

from tfkd.config import check, flatten
from tfkd.errors import UsageError
from tfkd.methods import method_variant, split_at_commas

#: What stands for the space that is derived from the method.
DEFAULT = "default"

#: The key under which methods are searched.
METHOD = "method"

#: Values that trials must share, and why.
_SHARED = {
    "data.name": "trials are compared on the same images",
    "data.train_examples": "trials are compared on the same images",
    "data.validation": "trials are compared on the same images",
    "data.image_size": "the teacher, which they share, was trained on one size",
    "teacher.": "they share the teacher",
    "epochs": "a comparison of unequal lengths says little; hyperband varies them by itself",
    "seed": "a seed that wins is luck; --executions_per_trial takes the mean over several",
    "select": "it decides what is compared",
    "check": "it changes nothing",
    "settings.": "they are defaults; search the values themselves",
    "method.name": "methods are searched as method:kd|kd+at",
    "method.distiller": "methods are searched as method:kd|kd+at",
}

#: Significant digits of numbers that a search tries. Float32, in which workers get them, has more.
_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Range:
    """A number between two limits, which are among its values.

    Attributes:
        key: String, the place in the config, such as `"optimizer.learning_rate"`.
        low: Number.
        high: Number.
        logarithmic: Whether every factor, rather than every difference, is as likely.
        whole: Whether only whole numbers are tried.
    """

    key: str
    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False

    def declare(self, hp):
        """Adds it to `keras_tuner.HyperParameters`; returns its value, None where inactive."""
        add = hp.Int if self.whole else hp.Float
        return add(self.key, self.low, self.high, sampling="log" if self.logarithmic else "linear")

    def read(self, value):
        """Returns what the config gets for a value that a search tries."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def limits(self):
        """Returns the values to check before a search: the first and the last."""
        return [self.low, self.high]

    def __str__(self):
        log = "log:" if self.logarithmic else ""
        return f"{self.key}:{log}{self.low:g}..{self.high:g}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        key: String, the place in the config.
        options: Tuple of the values, as the config takes them.
    """

    key: str
    options: tuple

    def declare(self, hp):
        """Adds it to `keras_tuner.HyperParameters`; returns its value, None where inactive."""
        # As texts: on the way to workers KerasTuner rounds numbers and makes 1 of True.
        return hp.Choice(self.key, [str(option) for option in self.options])

    def read(self, value):
        """Returns what the config gets for a value that a search tries."""
        return next(option for option in self.options if str(option) == value)

    def limits(self):
        """Returns the values to check before a search: all of them."""
        return list(self.options)

    def __str__(self):
        return f"{self.key}:{'|'.join(map(str, self.options))}"


class SearchSpace:
    """What a search may change in a config.

    Args:
        config: `ConfigDict` of a run, which says everything else.
        text: String, items separated by commas. An item is `KEY:LOW..HIGH` or `KEY:log:LOW..HIGH`
            for a number, `KEY:A|B|C` for a choice; keys are those of `--config.KEY=`.
            `method:kd|kd+at|ackd:attention=logit` picks among methods, and a key holds for those
            of them that have it. `default` stands for what `default_items` returns, and is meant
            too where no key but `method` is named; items after it take the place of its own.

    Attributes:
        methods: Tuple of the names of the methods.
        items: `{method: {key: Range or Choice}}`.

    Raises:
        UsageError: If an item cannot be understood, names nothing that can be searched, or its
            values are of another type than the config's.

    Example:
    ```python
    space = SearchSpace(config, "method:kd|kd+at,method.losses.kd.temperature:1..8")
    ```
    """

    def __init__(self, config, text=DEFAULT):
        self._config = copy.deepcopy(config)
        parts = [part.strip() for part in split_at_commas(text)]
        if not parts:
            raise UsageError(f"--search is empty: give {DEFAULT}, or items like {_EXAMPLE}.")
        given = {}
        for part in parts:
            key, colon, values = part.partition(":")
            if part != DEFAULT and not (key and colon and values):
                raise UsageError(f"--search: {part!r} must be like {_EXAMPLE}.")
            if key in given:
                raise UsageError(f"--search names {key} twice.")
            given[key] = values
        self.methods = (config.method.name,)
        if METHOD in given:
            self.methods = tuple(_split_options(METHOD, given.pop(METHOD)))
        default = DEFAULT in given or not given
        given.pop(DEFAULT, None)
        self.items = {}
        for name in self.methods:
            variant = self.variant(name)
            items = default_items(variant) if default else {}
            known = flatten(variant.to_dict())
            items |= {key: _item(variant, key, given[key]) for key in given if key in known}
            self.items[name] = items
        for key in given:
            if not any(key in items for items in self.items.values()):
                raise self._unknown(key)

    def variant(self, method):
        """Returns the config with another method, which has its defaults.

        Args:
            method: String, the name of a method.
        """
        variant = copy.deepcopy(self._config)
        variant.method = copy.deepcopy(method_variant(self._config, method))
        return variant

    def declare(self, hp):
        """Adds everything that is searched to `keras_tuner.HyperParameters`.

        Args:
            hp: `keras_tuner.HyperParameters`.

        Returns:
            The tuple `(method, {key: value})`, what this trial is to try.
        """
        method, values = self.methods[0], {}
        if len(self.methods) > 1:
            method = hp.Choice(METHOD, list(self.methods))
        # The same range of several methods is one hyperparameter, of which they all learn.
        for item in dict.fromkeys(item for own in self.items.values() for item in own.values()):
            having = [name for name in self.methods if self.items[name].get(item.key) == item]
            shared = len(having) == len(self.methods)
            scope = contextlib.nullcontext() if shared else hp.conditional_scope(METHOD, having)
            with scope:
                value = item.declare(hp)
            if method in having:
                values[item.key] = item.read(value)
        return method, values

    def config(self, method, values):
        """Returns the config of a trial.

        Args:
            method: String, its method.
            values: `{key: value}` in place of the config's own.

        Returns:
            A `ConfigDict`.
        """
        config = self.variant(method)
        for key, value in values.items():
            *path, last = key.split(".")
            part = config
            for name in path:
                part = part[name]
            part[last] = value
        return config

    def limits(self):
        """Returns configs that are right only if every config of the space is.

        That is, as far as can be told before training: with all ranges at their lower end, all at
        their upper end, and with each option.
        """
        found = []
        for method, items in self.items.items():
            first = {key: item.limits()[0] for key, item in items.items()}
            last = {key: item.limits()[-1] for key, item in items.items()}
            trials = [first, last]
            for key, item in items.items():
                trials += [{**first, key: value} for value in item.limits()[1:-1]]
            for values in trials:
                config = self.config(method, values)
                check(config)
                found.append(config)
        return found

    def __str__(self):
        lines = {
            name: ",".join(map(str, items.values())) or "(nothing)"
            for name, items in self.items.items()
        }
        if len(lines) == 1:
            return next(iter(lines.values()))
        return "\n".join(f"{name}: {line}" for name, line in lines.items())

    def _unknown(self, key):
        leaves = [flatten(self.variant(name).to_dict()) for name in self.methods]
        known = sorted({key for own in leaves for key in own})
        below = [other for other in known if other.startswith(f"{key}.")]
        close = below[:3] or difflib.get_close_matches(key, known, 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "config.json shows all values."
        return UsageError(
            f"--search: the config of method {' or '.join(self.methods)} has no value {key}; {hint}"
        )


_EXAMPLE = "optimizer.learning_rate:log:0.01..0.2 or optimizer.nesterov:True|False"


def default_items(config):
    """Returns what is searched by default: learning rate, temperatures and weights of the losses.

    Learning rates go from a third of the config's to three times that, weights from a fifth to
    five times (both logarithmic), temperatures from 1 to twice the config's, at least to 4. What is
    0 is turned off, and stays so. `student_loss_weight` stays as it is: only ratios of weights
    count beside the learning rate.

    Args:
        config: `ConfigDict` of a run.

    Returns:
        `{key: Range}`.
    """
    items = {}
    for key, value in flatten(config.to_dict()).items():
        name = key.rpartition(".")[2]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            continue
        if key == "optimizer.learning_rate":
            items[key] = Range(key, _rounded(value / 3), _rounded(value * 3), True)
        elif not key.startswith(("method.losses.", "method.arguments.")):
            continue
        elif name == "temperature":
            items[key] = Range(key, 1.0, max(4.0, 2.0 * value))
        elif name == "weight" or (name.endswith("_weight") and name != "student_loss_weight"):
            items[key] = Range(key, _rounded(value / 5), _rounded(value * 5), True)
    return items


def _item(config, key, text):
    """Reads what follows the first colon of an item."""
    for shared, reason in _SHARED.items():
        if key == shared or (shared.endswith(".") and key.startswith(shared)):
            raise UsageError(f"--search: {key} must be the same for all trials: {reason}.")
    *path, last = key.split(".")
    part = config
    for name in path:
        part = part[name]
    kind = part.get_type(last)
    scale, colon, limits = text.rpartition(":")
    if ".." not in text:
        options = [_read(key, option, kind) for option in _split_options(key, text)]
        return Choice(key, tuple(options))
    if scale not in ("", "log") or (colon and not scale):
        raise UsageError(f"--search: {key}:{text} must be like {key}:log:1..10 or {key}:1..10.")
    if kind not in (int, float):
        raise UsageError(
            f"--search: {key} is no number but like {part[last]!r}; give options, as in {key}:A|B."
        )
    low, high = (_read(key, limit, kind) for limit in limits.split("..", 1))
    if not low < high:
        raise UsageError(f"--search: {key}:{text} is empty: the range must go up.")
    if scale and low <= 0:
        raise UsageError(f"--search: {key}:{text} must begin above 0 to be logarithmic.")
    return Range(key, low, high, bool(scale), kind is int)


def _split_options(key, text):
    options = [option.strip() for option in text.split("|")]
    if not all(options) or len(set(options)) < len(options):
        raise UsageError(f"--search: {key}:{text} has an option that is empty or there twice.")
    return options


def _read(key, text, kind):
    """Reads one value of a type that the config has at this place."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        names = {bool: "True or False", int: "whole numbers", float: "numbers", tuple: "tuples"}
        raise UsageError(
            f"--search: {key} takes {names.get(kind, kind.__name__)}; received {text!r}."
        )
    return value


def _rounded(value):
    return float(f"{value:.2g}")
