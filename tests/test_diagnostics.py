"""The quantities of diagnostics, against their definitions and by hand."""

import math

import numpy as np
import pytest

from tfkd.inspection import diagnostics


def logits_of(probabilities):
    return np.log(np.array(probabilities, "float32"))


def test_agreement():
    teacher = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [0, 5, 1, 2]], "float32")
    student = np.array([[9, 0, 0, 0], [0, 1, 3, 2], [4, 1, 3, 2]], "float32")
    assert diagnostics.agreement(teacher, student) == pytest.approx(1 / 3)
    assert diagnostics.agreement(teacher, student, top=2) == pytest.approx(2 / 3)
    assert diagnostics.agreement(teacher, student, top=4) == 1
    # Of equal ones both take the first.
    assert diagnostics.agreement(np.zeros((5, 3)), np.zeros((5, 3))) == 1


def test_divergence_and_entropy():
    teacher, student = logits_of([[0.5, 0.5], [0.9, 0.1]]), logits_of([[0.25, 0.75], [0.9, 0.1]])
    by_hand = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75) + 0.0) / 2
    assert diagnostics.divergence(teacher, student) == pytest.approx(by_hand, rel=1e-5)
    # It does not matter what is added to all logits of an image.
    assert diagnostics.divergence(teacher + 7, student - 3) == pytest.approx(by_hand, rel=1e-4)
    assert diagnostics.divergence(student, teacher) != pytest.approx(by_hand, rel=0.01)
    by_hand = (math.log(2) - 0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 2
    assert diagnostics.entropy(teacher) == pytest.approx(by_hand, rel=1e-5)
    assert diagnostics.entropy(np.array([[1000.0, 0, 0]])) == 0


def test_calibration_error_by_hand():
    # Two bins: (0, 0.5] has one image, sure to 0.4, wrong; (0.5, 1] has three, sure to 0.6, 0.8
    # and 1, of which two are right.
    logits = logits_of([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [1e-9, 1e-9, 1]])
    labels = np.array([1, 0, 0, 2])
    by_hand = 1 / 4 * abs(0 - 0.4) + 3 / 4 * abs(2 / 3 - 0.8)
    assert diagnostics.calibration_error(logits, labels, bins=2) == pytest.approx(by_hand, abs=1e-6)
    # One bin sees means only; a bin for each image sees every distance.
    means = abs(0.5 - 0.7)
    assert diagnostics.calibration_error(logits, labels, bins=1) == pytest.approx(means, abs=1e-6)
    every = (0.4 + 0.4 + 0.8 + 0) / 4
    assert diagnostics.calibration_error(logits, labels) == pytest.approx(every, abs=1e-6)


def test_calibration_error_is_that_of_the_loop_over_bins():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 4)) * 2
    labels = generator.integers(0, 4, 500)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert diagnostics.calibration_error(logits, labels) == pytest.approx(expected, rel=1e-6)


def alignment(features, others, batches=1):
    parts = [
        [np.asarray(diagnostics.similarities(part)) for part in np.array_split(x, batches)]
        for x in (features, others)
    ]
    return diagnostics.centered_alignment(*parts)


def biased_cka(x, y):
    """Kornblith et al. (2019), equation 3 with linear kernels, word for word."""
    n = len(x)
    center = np.eye(n) - np.ones((n, n)) / n

    def hsic(k, m):
        return np.trace(k @ center @ m @ center) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def unbiased_hsic(k, m):
    """HSIC_1 of Song et al. (2012), as in Nguyen et al. (2021), equation 3, word for word."""
    n, ones = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(240, 6)).astype("float32") + 3
    mixing = generator.normal(size=(6, 5)).astype("float32")
    y = x @ mixing + generator.normal(size=(240, 5)).astype("float32")
    return x, y, generator


@pytest.mark.parametrize("batches", [1, 4])
def test_cka_is_the_ratio_of_unbiased_estimates(features, batches):
    x, y, _ = features
    hsic = np.zeros(3)
    for k, m in zip(np.array_split(x, batches), np.array_split(y, batches)):
        k, m = (np.float64(part) @ np.float64(part).T for part in (k, m))
        hsic += unbiased_hsic(k, m), unbiased_hsic(k, k), unbiased_hsic(m, m)
    expected = hsic[0] / np.sqrt(hsic[1] * hsic[2])
    assert alignment(x, y, batches) == pytest.approx(expected, abs=1e-4)
    # With many more images than dimensions the plain estimate is near.
    assert alignment(x, y, batches) == pytest.approx(biased_cka(x, y), abs=0.03)
    assert 0.3 < expected < 0.95


def test_cka_does_not_see_rotation_scale_and_offset(features):
    x, y, generator = features
    rotation, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    turned = 5 * (x @ rotation.astype("float32")) + 100
    assert alignment(x, x) == pytest.approx(1, abs=1e-6)
    assert alignment(x, turned, 3) == pytest.approx(1, abs=1e-4)
    assert alignment(turned, y) == pytest.approx(alignment(x, y), abs=1e-4)
    stretched = x * np.array([1, 1, 1, 1, 1, 30], "float32")
    assert alignment(x, stretched) < 0.8


def test_cka_of_unrelated_features_is_about_0_whatever_their_dimensions(features):
    _, _, generator = features
    x, y = generator.normal(size=(2, 128, 4, 4, 250)).astype("float32")
    assert abs(alignment(x, y, 2)) < 0.05
    flat = x.reshape(128, -1), y.reshape(128, -1)
    assert biased_cka(*flat) > 0.9
    assert alignment(x, np.ones_like(y)) == 0


def test_shares_and_cosines_by_hand():
    # Gradients (3, 0), (0, 1) and (-2, 2).
    gradients = np.array([[3, 0], [0, 1], [-2, 2]], "float32")
    norm, shares, cosines = diagnostics.shares_and_cosines(gradients @ gradients.T, [2.0, 4.0, 1.0])
    assert norm == pytest.approx(math.hypot(6 - 2, 4 + 2))
    total = 6 + 4 + math.sqrt(8)
    np.testing.assert_allclose(shares, [6 / total, 4 / total, math.sqrt(8) / total])
    np.testing.assert_allclose(cosines, [1, 0, -math.sqrt(0.5)], atol=1e-7)
    # A weight of 0 leaves the direction of the labels to compare with.
    _, shares, cosines = diagnostics.shares_and_cosines(gradients @ gradients.T, [0.0, 1.0, 1.0])
    assert shares[0] == 0 and cosines[2] == pytest.approx(-math.sqrt(0.5))
    norm, shares, _ = diagnostics.shares_and_cosines(np.zeros((2, 2)), [1.0, 1.0])
    assert norm == 0 and not shares.any()


def test_the_picture_shows_what_there_is(tmp_path):
    both = {"entropy": 1.0, "cka/stage1": 0.5, "gradient_share/kd_loss": 0.3, "loss": 2.0}
    for history in ([both], [{"loss": 2.0}, both, {"loss": 1.0}, both], [{"entropy": 1.0}]):
        diagnostics.picture(tmp_path / "picture.png", history)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()
