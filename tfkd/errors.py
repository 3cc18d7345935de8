"""What tfkd raises when the user, not the code, is mistaken."""

import contextlib
import difflib
import errno
import os
import re
import sys

#: Exit code of a command that ends with a mistake in what the user gave.
MISTAKE = 2
#: That of Ctrl-C, as shells expect it.
INTERRUPTED = 130


class UsageError(ValueError):
    """A mistake in what the user passed: an argument, a name, a shape, a file.

    Its message is one line that says what is wrong and what would be right. The command line
    prints that line alone; every other exception is a defect of ours and keeps its traceback.
    """

    # Keras otherwise appends the arguments of the layer in whose call the error is raised.
    _keras_call_info_injected = True


class DivergenceError(UsageError):
    """Training whose loss is no longer a finite number; its message says since when, and which.

    `fit` raises it, and what was saved before is untouched.
    """


def unknown(kind, name, known):
    """Returns the error for a name that is not among those that exist.

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


def near(name, known):
    """Returns those of some names that a mistaken one is most likely to mean, in a list.

    Args:
        name: The name as given. Capitals and punctuation do not count: `"MobileNetV2"` means
            `"mobilenet_v2"`.
        known: Iterable of strings.
    """
    likeness = {
        one: difflib.SequenceMatcher(None, _plain(one), _plain(name)).ratio() for one in known
    }
    best = max(likeness.values(), default=0.0)
    return [one for one, ratio in likeness.items() if ratio == best > 0.7]


def did_you_mean(names):
    """Returns the end of a sentence that proposes names; empty where there is none."""
    text = " or ".join(names)
    return text and f"; did you mean {text}?"


def _plain(name):
    return re.sub(r"[\W_]", "", str(name)).lower()


def check_no_arguments(given):
    """Raises a `UsageError` where a command that takes flags alone was given something else.

    Args:
        given: List of strings, what the command line held beside flags.
    """
    if given:
        raise UsageError(f"Unexpected argument {given[0]!r}: every option starts with --.")


def check_positive(name, value):
    """Raises a `UsageError` unless `value` is a number greater than 0.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{name} must be a number greater than 0; received {value!r}.")


def check_positive_integer(name, value):
    """Raises a `UsageError` unless `value` is a whole number greater than 0.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number greater than 0; received {value!r}.")


def check_nonnegative(name, value):
    """Raises a `UsageError` unless `value` is a number of at least 0.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise UsageError(f"{name} must be a number of at least 0; received {value!r}.")


def check_share(name, value):
    """Raises a `UsageError` unless `value` is a number between 0 and 1, or one of these.

    Args:
        name: String, the argument's name, for the message.
        value: The argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(f"{name} must be a number between 0 and 1; received {value!r}.")


def raised_within(error):
    """Returns the `UsageError` that a TensorFlow graph has raised, by `tf.debugging.Assert`.

    Args:
        error: Exception in whose text TensorFlow has put `[UsageError: ...]`.

    Returns:
        A `UsageError`, to be raised by the caller; None if there is none in it.
    """
    told = re.search(r"\[UsageError: (.+)\]", str(error))
    if not told:
        return None
    # TensorFlow escapes quotes, and bytes that are no UTF-8, as in C.
    text = told[1].encode("utf-8", "replace").decode("unicode_escape")
    return UsageError(text.encode("latin-1").decode("utf-8", "replace"))


@contextlib.contextmanager
def told_in_one_line():
    """Ends the process where a command finds a mistake: with one line, and exit code `MISTAKE`.

    Example:
    ```python
    with told_in_one_line():
        train(config)
    ```
    """
    try:
        yield
    except UsageError as error:
        _stop(error)
    except Exception as error:
        if told := raised_within(error):
            _stop(told)
        # Python's own error tells a number, those of TensorFlow (TensorBoard's files) only a text.
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
