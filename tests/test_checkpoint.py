import keras
import numpy as np
import pytest
import tiny

import tfkd
from tfkd import checkpoint
from tfkd.errors import UsageError


def distiller(width=4, seed=1):
    student = tiny.model(width, dropout=0.5, seed=seed)
    made = tfkd.KnowledgeDistiller(student, tiny.model(8, seed=2), ["kd", tiny.Hint()])
    made.compile(tfkd.optimizers.SGD(0.05, 0.9))
    return made


def train(made, steps):
    for step in range(steps):
        made.train_on_batch(*tiny.data(8, seed=step))
    return [variable.numpy() for variable in checkpoint.variables_of(made)]


def test_it_restores_weights_connectors_random_state_and_optimizer(tmp_path):
    first = distiller()
    train(first, 2)
    checkpoint.save(tmp_path / "checkpoint.npz", first, {"epoch": 7}, {"best": np.arange(3)})
    expected = train(first, 2)
    # Another initialization, and other random numbers drawn: all of it must be replaced.
    keras.utils.set_random_seed(5)
    second = distiller(seed=3)
    train(second, 1)
    state, extra = checkpoint.restore(tmp_path / "checkpoint.npz", second)
    assert state == {"epoch": 7}
    np.testing.assert_array_equal(extra["best"], np.arange(3))
    for a, b in zip(expected, train(second, 2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_holds_no_teacher_and_no_metrics():
    made = distiller()
    variables = {id(variable) for variable in checkpoint.variables_of(made)}
    assert not variables & {id(variable) for variable in made.teacher.variables}
    assert not variables & {id(variable) for variable in made.metrics_variables}
    random_state = [v for v in made.variables if "seed_generator_state" in v.path]
    assert random_state and {id(v) for v in random_state} <= variables


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_named_and_changes_nothing(tmp_path, damage):
    path = tmp_path / "checkpoint.npz"
    made = distiller()
    train(made, 1)
    checkpoint.save(path, made, {})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
    elif damage == "empty":
        content = b""
    else:
        content = b"not a checkpoint at all"
    path.write_bytes(content)
    before = [variable.numpy() for variable in checkpoint.variables_of(made)]
    with pytest.raises(UsageError, match="checkpoint.npz is damaged .* move it away"):
        checkpoint.restore(path, made)
    for a, b in zip(before, checkpoint.variables_of(made)):
        np.testing.assert_array_equal(a, b.numpy())


def test_a_checkpoint_of_other_models_is_refused(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.npz", distiller(), {})
    with pytest.raises(UsageError, match="belongs to other models"):
        checkpoint.restore(tmp_path / "checkpoint.npz", distiller(width=6))


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    checkpoint.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        checkpoint.write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
