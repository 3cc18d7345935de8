"""Pictures of a run as data: methods say what to show, and `tfkd.plots` draws it."""

import dataclasses

from tfkd import plots


class _Picture:
    def __call__(self, path):
        """Writes the picture as a PNG."""
        self.draw(path, **vars(self))


@dataclasses.dataclass
class Panels(_Picture):
    """Curves over the epochs; the attributes are the arguments of `tfkd.plots.panels`."""

    history: object
    contents: dict
    free: tuple = ()

    draw = staticmethod(plots.panels)


def accuracy_panels(logs):
    """Returns the contents of two `Panels`, accuracies in training and in validation.

    Args:
        logs: `{label: name of the log in training}`.
    """
    return {
        "training accuracy": logs,
        "validation accuracy": {label: f"val_{log}" for label, log in logs.items()},
    }


@dataclasses.dataclass
class ImageGrid(_Picture):
    """Images with captions; the attributes are the arguments of `tfkd.plots.image_grid`."""

    rows: list
    titles: list

    draw = staticmethod(plots.image_grid)


@dataclasses.dataclass
class HeatMap(_Picture):
    """A table of shares in colours; the attributes are the arguments of `tfkd.plots.heat_map`."""

    values: object
    rows: list
    row_title: str
    column_title: str
    title: str

    draw = staticmethod(plots.heat_map)
