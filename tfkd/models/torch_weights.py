r"""Turns a published PyTorch checkpoint into a `.keras` file, from the command line.

```
python -m tfkd.models.torch_weights --model=wrn_40_2 --num_classes=100 \
    --source=wrn_40_2.pth --output=teacher.keras
```
"""

import os
import sys
import tempfile

from absl import app, flags

from tfkd.errors import UsageError, check_no_arguments, exit_on_usage_error
from tfkd.models import create, load_torch_weights


def convert(model, num_classes, source, output, input_shape=(32, 32, 3)):
    """Writes a zoo model with published weights to a file.

    Args:
        model: String, an id of `tfkd.models.available()`.
        num_classes: Integer, the classes that the checkpoint was trained for.
        source: String, the path of a `.pth`, `.pt` or `.safetensors` file.
        output: String, the path of the `.keras` file to write. What was there is replaced, and
            only once the new file is complete.
        input_shape: `(height, width, channels)` of the images that the model shall take.

    Raises:
        UsageError: If an argument makes no sense, if the checkpoint does not fit the model, or
            if the output cannot be written. A file that was there stays as it was.

    Example:
    ```python
    convert("wrn_40_2", 100, "wrn_40_2.pth", "teacher.keras")
    ```
    """
    if not output.endswith(".keras"):
        raise UsageError(f"The output must end in .keras; received {output!r}.")
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise UsageError(f"There is no folder {folder!r} to write the output to.")
    if os.path.isdir(output):
        raise UsageError(f"The output {output!r} is a folder; it must be a file.")
    network = load_torch_weights(create(model, num_classes, input_shape=input_shape), source)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            complete = os.path.join(temporary, "model.keras")
            network.save(complete)
            os.replace(complete, output)
    except OSError as error:
        raise UsageError(f"{output!r} cannot be written: {error}.") from error


_REQUIRED = ("model", "num_classes", "source", "output")


def _define_flags():
    # On demand, because flags are global to a process: importing this module defines none.
    flags.DEFINE_string("model", None, "Id of the zoo model, such as wrn_40_2.")
    flags.DEFINE_integer("num_classes", None, "Classes that the checkpoint was trained for.")
    flags.DEFINE_string("source", None, "The checkpoint: a .pth, .pt or .safetensors file.")
    flags.DEFINE_string("output", None, "The .keras file to write.")
    flags.DEFINE_list("input_shape", "32,32,3", "Height, width and channels of an image.")


def _parse_flags():
    app.define_help_flags()
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        raise UsageError(error) from error
    check_no_arguments(rest)
    missing = [name for name in _REQUIRED if flags.FLAGS[name].value is None]
    if missing:
        needed = ", ".join(f"--{name}" for name in missing)
        raise UsageError(f"Missing {needed}; --help explains them.")


def run(values):
    """Runs `convert()` on the values of the flags."""
    try:
        shape = [int(size) for size in values.input_shape]
    except ValueError as error:
        raise UsageError(
            f"input_shape must be three integers such as 32,32,3; received {values.input_shape}."
        ) from error
    convert(values.model, values.num_classes, values.source, values.output, shape)
    print(f"Wrote {values.output}.")


if __name__ == "__main__":
    _define_flags()
    with exit_on_usage_error():
        _parse_flags()
        run(flags.FLAGS)
