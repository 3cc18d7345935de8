import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from tfkd import plots


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_grid_shows_its_images_as_bright_as_they_are(tmp_path, channels):
    brightness = []
    for value in (0.0, 0.5, 1.0):
        images = np.full((2, 8, 8, channels), value)
        rows = [("real", images, ["a", "b"]), ("divergent", images, ["a / b", "b / b"])]
        plots.image_grid(tmp_path / "grid.png", rows, ["a", "b"])
        brightness.append(pyplot.imread(tmp_path / "grid.png")[..., :3].mean())
    assert brightness[0] + 0.1 < brightness[1] < brightness[2] - 0.1
    assert brightness[1] == pytest.approx((brightness[0] + brightness[2]) / 2, abs=0.01)
    assert not pyplot.get_fignums()
    assert Image.open(tmp_path / "grid.png").info["Description"] == "Images: real, divergent"


def test_panels_draw_every_log(tmp_path):
    history = [{"loss": 2.0, "share": 0.1}, {"loss": 1.0, "share": 0.9}]
    contents = {"loss": {"all": "loss"}, "share": {"accepted": "share"}}
    plots.panels(tmp_path / "panels.png", history, contents)
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
    told = Image.open(tmp_path / "panels.png").info["Description"]
    assert told == "Loss, share over the epochs"
    assert not pyplot.get_fignums()


def test_what_fit_returns_is_drawn_as_its_logs_by_epoch(tmp_path):
    class History:
        history = {"loss": [2.0, 1.0], "accuracy": [0.1, 0.9]}

    rows = [{"loss": 2.0, "accuracy": 0.1}, {"loss": 1.0, "accuracy": 0.9}]
    drawn = []
    for history in (rows, History.history, History()):
        assert plots.logs_by_epoch(history) == rows
        plots.curves(tmp_path / "one.png", {"kd": history})
        plots.curves(tmp_path / "two.png", {"kd": [history, history]})
        drawn.append([(tmp_path / name).read_bytes() for name in ("one.png", "two.png")])
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize(
    "values", [[[1.0]], [[2.0, 0.01], [3.0, 0.03]], [[np.nan, 1]], [[np.inf, 1]]]
)
def test_a_curve_is_drawn_whatever_its_values(tmp_path, values):
    drawn = []
    for logarithmic in (False, True):
        path = tmp_path / f"{logarithmic}.png"
        plots.curve(path, "loss", {"kd": np.array(values)}, logarithmic)
        assert Image.open(path).info["Description"] == "Loss over the epochs"
        drawn.append(path.read_bytes())
    # Only values that span more than a decade have a logarithmic axis.
    assert (drawn[0] != drawn[1]) == (len(values) == 2)


@pytest.mark.slow
def test_drawing_leaves_the_figures_of_a_notebook_alone(tmp_path):
    code = f"""
import tfkd.plots
tfkd.plots.panels({str(tmp_path / "one.png")!r}, [{{"loss": 1.0}}], {{"loss": {{"all": "loss"}}}})
import matplotlib
print(matplotlib.get_backend())
"""
    # What a notebook's kernel sets, by a backend that every machine has.
    environment = {**os.environ, "MPLBACKEND": "svg"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "svg"
