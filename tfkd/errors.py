"""Errors for mistakes of the user, and checks of arguments that raise them."""

import contextlib
import difflib
import errno
import os
import re
import sys

#: Exit code of a command on wrong input.
MISTAKE = 2
#: Exit code after Ctrl-C, as shells expect it.
INTERRUPTED = 130


class UsageError(ValueError):
    """Wrong input from the user: an argument, a name, a shape, a file.

    Its message is one line that says what is wrong and what would be right. The command line
    prints that line alone; every other exception is a bug in tfkd and keeps its traceback.
    """

    # Keras otherwise appends the arguments of the layer in whose call the error is raised.
    _keras_call_info_injected = True


class DivergenceError(UsageError):
    """A loss that became NaN or infinite in training; the message names it and the step.

    `fit` raises it. Earlier checkpoints stay as they are.
    """


def unknown(kind, name, known):
    """Returns the error for an unknown name.

    Args:
        kind: String, what the name should have named, such as `"model"`.
        name: The name as given.
        known: Iterable of the names that exist.

    Returns:
        A `UsageError`, to be raised by the caller.
    """
    known = [str(one) for one in known]
    return UsageError(
        f"Unknown {kind} {name!r}: it must be one of {', '.join(known)}"
        f"{did_you_mean(map(repr, near(name, known))) or '.'}"
    )


#: How alike a known name must be to be suggested, from 0 to 1: that of `difflib`, whose two letters
#: in three it is that bring "dkt" to "dkd".
_ALIKE = 0.6


def near(name, known):
    """Returns a list of the known names that are closest to a misspelled one.

    Args:
        name: The name as given. Case and punctuation do not count: `"MobileNetV2"` means
            `"mobilenet_v2"`.
        known: Iterable of strings.
    """
    likeness = {
        one: difflib.SequenceMatcher(None, _plain(one), _plain(name)).ratio() for one in known
    }
    best = max(likeness.values(), default=0.0)
    return [one for one, ratio in likeness.items() if ratio == best >= _ALIKE]


def did_you_mean(names):
    """Returns the end of a sentence that suggests names; empty where there are none."""
    text = " or ".join(names)
    return text and f"; did you mean {text}?"


def _plain(name):
    return re.sub(r"[\W_]", "", str(name)).lower()


def check_no_arguments(given):
    """Raises a `UsageError` for positional arguments of a command that takes flags alone.

    Args:
        given: List of strings, the positional arguments.
    """
    if given:
        raise UsageError(f"Unexpected argument {given[0]!r}: every option starts with --.")


def check_one_of(name, value, known):
    """Raises a `UsageError` unless `value` is among the known ones.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
        known: Iterable of the values that exist.
    """
    if value not in [*known]:
        raise unknown(name, value, known)


def check_boolean(name, value):
    """Raises a `UsageError` unless `value` is True or False; the arguments as `check_one_of`."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False; received {value!r}.")


def check_number(name, value, wanted, accepts, kinds=(int, float)):
    """Raises a `UsageError` unless `value` is a number that is accepted.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
        wanted: String, what it must be, for the message.
        accepts: Function of a number that returns whether it is accepted.
        kinds: The Python types of such numbers. A boolean is never one.
    """
    if isinstance(value, bool) or not isinstance(value, kinds) or not accepts(value):
        raise UsageError(f"{name} must be {wanted}; received {value!r}.")


def check_positive(name, value):
    """Raises a `UsageError` unless `value` is a number greater than 0."""
    check_number(name, value, "a number greater than 0", lambda x: x > 0)


def check_positive_integer(name, value):
    """Raises a `UsageError` unless `value` is a whole number greater than 0."""
    check_number(name, value, "a whole number greater than 0", lambda x: x > 0, int)


def check_nonnegative(name, value):
    """Raises a `UsageError` unless `value` is a number of at least 0."""
    check_number(name, value, "a number of at least 0", lambda x: x >= 0)


def check_share(name, value):
    """Raises a `UsageError` unless `value` is a number from 0 to 1."""
    check_number(name, value, "a number between 0 and 1", lambda x: 0 <= x <= 1)


def raised_within(error):
    """Returns the `UsageError` that `tf.debugging.Assert` has raised in a TensorFlow graph.

    Args:
        error: Exception whose text may contain `[UsageError: ...]`.

    Returns:
        A `UsageError`, to be raised by the caller; None if the text contains none.
    """
    found = re.search(r"\[UsageError: (.+)\]", str(error))
    if not found:
        return None
    # TensorFlow escapes quotes and bytes outside of UTF-8 as C does.
    text = found[1].encode("utf-8", "replace").decode("unicode_escape")
    return UsageError(text.encode("latin-1").decode("utf-8", "replace"))


@contextlib.contextmanager
def exit_on_usage_error():
    """Exits with one line and the code `MISTAKE` on a `UsageError` or an error of the files.

    Example:
    ```python
    with exit_on_usage_error():
        train(config)
    ```
    """
    try:
        yield
    except UsageError as error:
        _stop(error)
    except Exception as error:
        if usage_error := raised_within(error):
            _stop(usage_error)
        # Python's error has a number, TensorFlow's (of TensorBoard's files) only a text.
        full = re.search(rf"(?:(/\S+); *)?{os.strerror(errno.ENOSPC)}", str(error))
        if full:
            path = getattr(error, "filename", None) or full[1] or "A file"
            _stop(
                f"{path} could not be written ({os.strerror(errno.ENOSPC)}): make room; then the "
                "same command goes on."
            )
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _stop(f"{error.filename}: {error.strerror}.")


def _stop(reason):
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
    sys.exit(MISTAKE)
