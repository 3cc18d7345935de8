"""Pictures of runs, as PNG files."""

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402


def curves(path, histories):
    """Draws loss and accuracy over the epochs.

    Args:
        path: Where to write the PNG.
        histories: `{label: list of {name: value} per epoch}`; each becomes one line, or where
            the label stands for several runs `{label: [history, ...]}` a mean line within the
            band of one standard deviation.
    """
    import numpy as np

    panels = {
        "loss": "training loss",
        "accuracy": "training accuracy",
        "val_accuracy": "validation accuracy",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.8), layout="constrained")
    for axis, (key, title) in zip(axes, panels.items()):
        for label, runs in histories.items():
            runs = [runs] if runs and isinstance(runs[0], dict) else runs
            values = np.array([[epoch.get(key, np.nan) for epoch in run] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            mean = values.mean(axis=0)
            deviation = values.std(axis=0, ddof=min(1, len(runs) - 1))
            (line,) = axis.plot(epochs, mean, label=label)
            if len(runs) > 1:
                axis.fill_between(
                    epochs, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2
                )
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[-1].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def swaps(path, history):
    """Draws how often blocks were swapped, and how often they were meant to be.

    Args:
        path: Where to write the PNG.
        history: List of `{name: value}` per epoch: `keep_probability`, `swapped_share`, and
            `swapped_{block}` for every block.
    """
    epochs = range(1, len(history) + 1)
    figure, (chance, share) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    chance.plot(epochs, [epoch["keep_probability"] for epoch in history])
    chance.set_title("probability to keep the student's block")
    blocks = [key for key in history[0] if key.startswith("swapped_") and key != "swapped_share"]
    for key in blocks:
        label = key.removeprefix("swapped_")
        share.plot(epochs, [epoch[key] for epoch in history], linewidth=1, alpha=0.7, label=label)
    mean = [epoch["swapped_share"] for epoch in history]
    share.plot(epochs, mean, color="black", label="all blocks")
    share.set_title("share of blocks swapped")
    share.legend()
    for axis in (chance, share):
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
