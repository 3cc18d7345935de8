"""Draws pictures of runs as PNG files; imports matplotlib where it draws."""

import numpy as np


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
    figure = _figure(13, 3.8)
    axes = figure.subplots(1, len(shown))
    for axis, (key, title) in zip(axes, shown.items()):
        for label, runs in histories.items():
            runs = [logs_by_epoch(run) for run in ([runs] if _is_one(runs) else runs)]
            _line(axis, label, [[epoch.get(key, np.nan) for epoch in run] for run in runs])
        _over_epochs(axis, title)
    axes[0].set_yscale("log")
    axes[-1].legend()
    _save(figure, path, f"{', '.join(shown.values())} over the epochs")


def curve(path, title, lines, logarithmic=False):
    """Draws one quantity over the epochs.

    Args:
        path: Where to write the PNG, a path or a file.
        title: String, what the quantity is.
        lines: `{label: values (runs, epochs)}`; each becomes the line of their mean, within the
            band of one standard deviation where there are several runs.
        logarithmic: Boolean, whether the axis may be logarithmic: it is where the values are
            positive and span more than a decade.
    """
    import matplotlib

    figure = _figure(4.8, 2.9 + 0.22 * len(lines))
    axis = figure.subplots()
    # Where colours repeat, dashes tell lines apart.
    colours = matplotlib.rcParams["axes.prop_cycle"]
    axis.set_prop_cycle(matplotlib.cycler(linestyle=["-", "--", ":", "-."]) * colours)
    for label, values in lines.items():
        _line(axis, label, values)
    means = np.concatenate([np.mean(values, axis=0) for values in lines.values()])
    low, high = np.nanmin(means), np.nanmax(means)
    if logarithmic and 0 < 10 * low < high < np.inf:
        axis.set_yscale("log")
        _write_plainly(axis.yaxis)
        # A band may reach below zero, which would stretch the axis.
        axis.set_ylim(low / 1.5, high * 1.5)
    _over_epochs(axis, title)
    figure.legend(loc="outside lower left", frameon=False)
    _save(figure, path, f"{title} over the epochs")


def _line(axis, label, values, epochs=None):
    """Draws the mean of some runs, `values (runs, epochs)`, within one standard deviation."""
    values = np.asarray(values)
    epochs = np.arange(1, values.shape[1] + 1) if epochs is None else epochs
    mean = values.mean(axis=0)
    # A line of one point would not be seen.
    (line,) = axis.plot(epochs, mean, label=label, marker="." if len(mean) == 1 else None)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        axis.fill_between(
            epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2
        )


def _is_one(runs):
    """Whether something is the history of one run rather than a list of such."""
    if not isinstance(runs, (list, tuple)):
        return True
    first = runs[0] if runs else None
    return isinstance(first, dict) and not any(isinstance(x, list) for x in first.values())


def logged(contents, history):
    """Returns the part of `panels`' contents that some epoch of a history has logged."""
    names = {name for epoch in history for name in epoch}
    kept = {
        title: {label: name for label, name in lines.items() if name in names}
        for title, lines in contents.items()
    }
    return {title: lines for title, lines in kept.items() if lines}


def panels(path, history, contents, free=(), columns=None):
    """Draws values over the epochs, in one panel per kind.

    Args:
        path: Where to write the PNG.
        history: The logs of each epoch, as `logs_by_epoch` takes them. Lines leave out the epochs
            that do not have a value.
        contents: `{title: {label: name of a log}}`; logs that no epoch has are left out. A panel
            whose values are all within 0 and 1 shows that range, so that shares can be compared
            by eye.
        free: Titles of panels that show the range of their values in any case.
        columns: Integer, how many panels are beside each other; None for all.
    """
    history = logs_by_epoch(history)
    contents = logged(contents, history)
    columns = min(columns or len(contents), len(contents))
    rows = -(-len(contents) // columns)
    figure = _figure(4.6 * columns, 3.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(contents) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes.flat, contents.items()):
        everything = []
        for label, name in names.items():
            known = [number for number, epoch in enumerate(history, start=1) if name in epoch]
            values = [history[number - 1][name] for number in known]
            _line(axis, label, [values], known)
            everything += values
        everything = np.array(everything)
        if title not in free and np.all((everything >= 0) & (everything <= 1)):
            axis.set_ylim(-0.03, 1.03)
        _over_epochs(axis, title)
        axis.legend(fontsize="small")
    _save(figure, path, f"{', '.join(contents)} over the epochs")


def image_grid(path, rows, titles):
    """Draws rows of images with a caption below each.

    Args:
        path: Where to write the PNG.
        rows: List of `(label, images (columns, height, width, channels) in [0, 1], captions)`.
        titles: List of strings, one for each column.
    """
    columns = len(titles)
    figure = _figure(1.5 * columns, 1.85 * len(rows))
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
    _save(figure, path, f"images: {', '.join(label for label, _, _ in rows)}")


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
    figure = _figure(10, 1.6 + 0.35 * len(rows))
    axis = figure.subplots()
    image = axis.imshow(values, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(rows)), rows)
    columns = np.shape(values)[1]
    axis.set_xticks(range(0, columns, max(1, columns // 20)))
    axis.set_ylabel(row_title)
    axis.set_xlabel(column_title)
    axis.set_title(title)
    figure.colorbar(image)
    _save(figure, path, f"{title}, by {row_title} and {column_title}")


def trials(path, scores, values, title, logarithmic=()):
    """Draws what the trials of a search reached, in their order and over each thing searched.

    Args:
        path: Where to write the PNG.
        scores: List of numbers, in the order in which the trials began.
        values: `{name: list of values}` of the trials; None for one that has no such value. What
            is no number is drawn as categories.
        title: String, what the scores are.
        logarithmic: Names whose axis is logarithmic.
    """
    columns = min(4, 1 + len(values))
    lines = -(-(1 + len(values)) // columns)
    figure = _figure(4.2 * columns, 3.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    order = np.arange(1, len(scores) + 1)
    first, *others = grid.flat
    first.plot(order, np.maximum.accumulate(scores), color="grey", label="best so far")
    first.scatter(order, scores, c=order, cmap="viridis")
    first.set_xlabel("trial")
    first.xaxis.get_major_locator().set_params(integer=True)
    first.set_ylabel(title)
    first.legend(fontsize="small")
    for axis, (name, tried) in zip(others, values.items()):
        known = [i for i, value in enumerate(tried) if value is not None]
        shown = [tried[i] for i in known]
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in shown):
            shown = [str(value) for value in shown]
        axis.scatter(
            shown,
            [scores[i] for i in known],
            c=order[known],
            cmap="viridis",
            vmin=1,
            vmax=len(scores),
        )
        if name in logarithmic:
            axis.set_xscale("log")
            _write_plainly(axis.xaxis)
        axis.set_xlabel(name)
    for axis in grid.flat:
        axis.grid(alpha=0.3)
    for axis in others[len(values) :]:
        axis.set_visible(False)
    _save(figure, path, f"{title} of the trials, over {', '.join(values)}")


def study(path, title, methods, teacher=None):
    """Draws the accuracies of several methods: bars for means, dots for seeds.

    Args:
        path: Where to write the PNG.
        title: String.
        methods: `{name: list of accuracies}`, one for each seed, in the order of the bars.
        teacher: Accuracy of the teacher, drawn as a line; None for none.
    """
    figure = _figure(8, 1.4 + 0.32 * len(methods))
    axis = figure.subplots()
    means = [100 * np.mean(accuracies) for accuracies in methods.values()]
    axis.barh(list(methods), means, color="tab:blue", alpha=0.35)
    for name, accuracies in methods.items():
        axis.plot(100 * np.array(accuracies), [name] * len(accuracies), "o", color="tab:blue", ms=4)
    drawn = [100 * one for accuracies in methods.values() for one in accuracies]
    low, high = min(drawn), max(drawn)
    if teacher is not None:
        axis.axvline(100 * teacher, color="tab:orange", label=f"teacher, {100 * teacher:.2f} %")
        axis.legend(loc="lower right")
        high = max(high, 100 * teacher)
    # Bars from zero would hide the differences; the axis says where it begins.
    axis.set_xlim(low - 0.15 * (high - low) - 1, high + 0.05 * (high - low) + 0.5)
    axis.invert_yaxis()
    axis.set_xlabel("test accuracy, %")
    axis.set_title(title)
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path, f"test accuracy of each method and seed, {title}")


def _figure(width, height):
    # Not pyplot, whose backend belongs to whoever imports tfkd: a notebook shows its figures by it.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write_plainly(axis):
    """Labels a logarithmic axis with 0.5 rather than with a power of ten."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _save(figure, path, description):
    """Writes a figure, with a description that pages which show it use as its caption."""
    description = description[:1].upper() + description[1:]
    figure.savefig(path, dpi=110, metadata={"Description": description})


def _over_epochs(axis, title):
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
