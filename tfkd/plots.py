"""Pictures of runs, as PNG files."""

import numpy as np

# Not pyplot, whose backend belongs to whoever imports tfkd: a notebook shows its figures by it.
from matplotlib.figure import Figure


def logs_by_epoch(history):
    """Returns the logs of each epoch, as all pictures take them.

    Args:
        history: What `fit` returned, its `history`, or a list of `{name: value}` per epoch.

    Returns:
        A list of `{name: value}`.
    """
    history = getattr(history, "history", history)
    if isinstance(history, dict):
        history = [dict(zip(history, values)) for values in zip(*history.values())]
    return history


def curves(path, histories):
    """Draws loss and accuracy over the epochs.

    Args:
        path: Where to write the PNG.
        histories: `{label: history}`, as `logs_by_epoch` takes it; each becomes one line, or
            where the label stands for several runs `{label: [history, ...]}` a mean line within
            the band of one standard deviation.
    """
    shown = {
        "loss": "training loss",
        "accuracy": "training accuracy",
        "val_accuracy": "validation accuracy",
    }
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, (key, title) in zip(axes, shown.items()):
        for label, runs in histories.items():
            runs = [logs_by_epoch(run) for run in ([runs] if _is_one(runs) else runs)]
            values = np.array([[epoch.get(key, np.nan) for epoch in run] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            mean = values.mean(axis=0)
            deviation = values.std(axis=0, ddof=min(1, len(runs) - 1))
            (line,) = axis.plot(epochs, mean, label=label)
            if len(runs) > 1:
                axis.fill_between(
                    epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2
                )
        _over_epochs(axis, title)
    axes[0].set_yscale("log")
    axes[-1].legend()
    figure.savefig(path, dpi=110)


def _is_one(runs):
    """Whether something is the history of one run rather than a list of such."""
    if not isinstance(runs, (list, tuple)):
        return True
    first = runs[0] if runs else None
    return isinstance(first, dict) and not any(isinstance(x, list) for x in first.values())


def panels(path, history, contents, free=()):
    """Draws values over the epochs, in one panel per kind.

    Args:
        path: Where to write the PNG.
        history: The logs of each epoch, as `logs_by_epoch` takes them.
        contents: `{title: {label: name of a log}}`. A panel whose values are all within 0 and 1
            shows that range, so that shares can be compared by eye.
        free: Titles of panels that show the range of their values in any case.
    """
    history = logs_by_epoch(history)
    count = len(contents)
    figure = Figure(figsize=(4.6 * count, 3.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    for axis, (title, names) in zip(axes[0], contents.items()):
        series = {label: [epoch[name] for epoch in history] for label, name in names.items()}
        for label, values in series.items():
            axis.plot(range(1, len(values) + 1), values, label=label)
        everything = np.concatenate([np.asarray(values) for values in series.values()])
        if title not in free and np.all((everything >= 0) & (everything <= 1)):
            axis.set_ylim(-0.03, 1.03)
        _over_epochs(axis, title)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def image_grid(path, rows, titles):
    """Draws rows of images with a caption below each.

    Args:
        path: Where to write the PNG.
        rows: List of `(label, images (columns, height, width, channels) in [0, 1], captions)`.
        titles: List of strings, one for each column.
    """
    columns = len(titles)
    figure = Figure(figsize=(1.5 * columns, 1.85 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize="small")
    for (label, images, captions), line in zip(rows, axes):
        line[0].set_ylabel(label)
        for axis, image, caption in zip(line, images, captions):
            axis.imshow(
                image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1
            )
            axis.set_xlabel(caption, fontsize="x-small")
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)


def heat_map(path, values, rows, row_title, column_title, title):
    """Draws a table of values from 0 to 1 in colours.

    Args:
        path: Where to write the PNG.
        values: Array `(rows, columns)`; what is not a number stays blank.
        rows: List of the rows' labels. Columns are numbered.
        row_title: String, what the rows are.
        column_title: String, what the columns are.
        title: String, what the values are.
    """
    figure = Figure(figsize=(10, 1.6 + 0.35 * len(rows)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(rows)), rows)
    columns = np.shape(values)[1]
    axis.set_xticks(range(0, columns, max(1, columns // 20)))
    axis.set_ylabel(row_title)
    axis.set_xlabel(column_title)
    axis.set_title(title)
    figure.colorbar(image)
    figure.savefig(path, dpi=110)


def _over_epochs(axis, title):
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
