import os
import re
import subprocess

import keras
import numpy as np
import pytest
import tiny

import tfkd
from tfkd import files
from tfkd.errors import UsageError
from tfkd.runs import checkpoint


def distiller(width=4, seed=1):
    student = tiny.model(width, dropout=0.5, seed=seed)
    made = tfkd.KnowledgeDistiller(student, tiny.model(8, seed=2), ["kd", tiny.Hint()])
    made.compile(tfkd.optimizers.SGD(0.05, 0.9), **tiny.EAGER)
    return made


def train(made, steps):
    for step in range(steps):
        made.train_on_batch(*tiny.data(8, seed=step))
    return [variable.numpy() for variable in checkpoint.variables_of(made)]


@pytest.fixture(scope="module")
def made():
    """A distiller that has trained, for tests that restore what they have saved, or nothing."""
    made = distiller()
    train(made, 1)
    return made


def test_it_restores_weights_connectors_random_state_and_optimizer(tmp_path):
    first = distiller()
    train(first, 2)
    checkpoint.save(tmp_path / "checkpoint.npz", first, {"epoch": 7}, {"best": np.arange(3)})
    expected = train(first, 2)
    # Another initialization, and other random numbers drawn: all of it must be replaced.
    keras.utils.set_random_seed(5)
    second = distiller(seed=3)
    train(second, 1)
    restored = checkpoint.restore(tmp_path / "checkpoint.npz", second)
    assert restored.state == {"epoch": 7} and restored.warning is None
    np.testing.assert_array_equal(restored.extra["best"], np.arange(3))
    for a, b in zip(expected, train(second, 2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_holds_no_teacher_and_no_metrics(made):
    variables = {id(variable) for variable in checkpoint.variables_of(made)}
    assert not variables & {id(variable) for variable in made.teacher.variables}
    assert not variables & {id(variable) for variable in made.metrics_variables}
    random_state = [v for v in made.variables if "seed_generator_state" in v.path]
    assert random_state and {id(v) for v in random_state} <= variables


def damage_file(path, damage):
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


DAMAGES = ["truncated", "flipped", "empty", "foreign"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_changes_nothing(tmp_path, made, damage):
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, made, {})
    damage_file(path, damage)
    content = path.read_bytes()
    before = [variable.numpy() for variable in checkpoint.variables_of(made)]
    with pytest.raises(UsageError, match="checkpoint.npz is damaged .* move it away"):
        checkpoint.restore(path, made)
    for a, b in zip(before, checkpoint.variables_of(made)):
        np.testing.assert_array_equal(a, b.numpy())
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_stands_in_for_a_damaged_one(tmp_path, made, damage):
    path = tmp_path / "checkpoint.npz"
    for epoch in (1, 2, 3):
        checkpoint.save(path, made, {"epoch": epoch})
    damage_file(path, damage)
    restored = checkpoint.restore(path, made)
    assert restored.state == {"epoch": 2}
    assert re.match(
        r".*checkpoint.npz is damaged \(.*\); moved to checkpoint.damaged.npz, going on "
        r"from checkpoint.previous.npz\.$",
        restored.warning,
    )
    # The next one must not put the damaged one in the place of the good one.
    checkpoint.save(path, made, {"epoch": 3})
    damage_file(path, damage)
    assert checkpoint.restore(path, made).state == {"epoch": 2}


def test_a_kill_between_the_two_moves_of_a_new_checkpoint_loses_nothing(tmp_path, made):
    path = tmp_path / "checkpoint.npz"
    assert checkpoint.restore(path, made) is None
    checkpoint.save(path, made, {"epoch": 1})
    path.rename(checkpoint.previous(path))
    restored = checkpoint.restore(path, made)
    assert restored.state == {"epoch": 1} and restored.warning is None


def test_both_damaged_are_both_named(tmp_path, made):
    path = tmp_path / "checkpoint.npz"
    for _ in range(2):
        checkpoint.save(path, made, {})
    for one in (path, checkpoint.previous(path)):
        damage_file(one, "truncated")
    with pytest.raises(
        UsageError, match="checkpoint.npz is .*checkpoint.previous.npz is .* move them"
    ):
        checkpoint.restore(path, made)


def test_no_damage_of_a_byte_goes_unseen(tmp_path, made):
    """Whatever a reader makes of it: one clear error, or the same arrays."""
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, made, {"epoch": 1}, {"best": np.arange(3)})
    whole = path.read_bytes()
    expected = [variable.numpy() for variable in checkpoint.variables_of(made)]
    random = np.random.default_rng(0)
    for position in random.integers(0, len(whole), 300):
        content = bytearray(whole)
        content[position] ^= 1 << random.integers(8)
        path.write_bytes(content)
        try:
            restored = checkpoint.restore(path, made)
        except UsageError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
            continue
        assert restored.state == {"epoch": 1}
        np.testing.assert_array_equal(restored.extra["best"], np.arange(3))
        for a, b in zip(expected, checkpoint.variables_of(made)):
            np.testing.assert_array_equal(a, b.numpy())


def test_a_checkpoint_of_another_run_is_refused(tmp_path, made):
    checkpoint.save(tmp_path / "checkpoint.npz", made, {}, run="teacher")
    with pytest.raises(UsageError, match="belongs to another run .'teacher', not 'student'"):
        checkpoint.restore(tmp_path / "checkpoint.npz", made, run="student")


def test_what_killed_processes_left_is_removed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "teacher").mkdir()
    left = tmp_path / "teacher" / f".{gone.pid}.partial.checkpoint.npz"
    being_written = tmp_path / f".{os.getpid()}.partial.checkpoint.npz"
    other = tmp_path / ".partial.notes"
    for path in (left, being_written, other):
        path.write_text("half")
    files.remove_partial(tmp_path)
    assert not left.exists() and being_written.exists() and other.exists()


def test_a_checkpoint_of_other_models_is_refused(tmp_path, made):
    checkpoint.save(tmp_path / "checkpoint.npz", made, {})
    with pytest.raises(UsageError, match="belongs to other models"):
        checkpoint.restore(tmp_path / "checkpoint.npz", distiller(width=6))


def of_branches(names, classes=5):
    """A student whose branches are alike but for their names."""
    inputs = keras.Input(tiny.SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    branches = [keras.layers.Dense(4, name=name)(x) for name in names]
    outputs = keras.layers.Dense(classes)(keras.layers.Add()(branches))
    made = tfkd.KnowledgeDistiller(keras.Model(inputs, outputs))
    made.compile(tfkd.optimizers.SGD(0.05, 0.9))
    return made


@pytest.mark.parametrize(
    "names, others",
    [
        (["first", "second"], ["second", "first"]),
        (["branch_1", "branch_2"], ["branch_2", "branch_1"]),
        (["branch", "branch_1"], ["branch_1", "branch"]),
        (["first", "second"], ["first", "third"]),
    ],
)
def test_weights_of_equal_shape_in_another_order_are_refused(tmp_path, names, others):
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, of_branches(names), {})
    made = of_branches(others)
    before = [variable.numpy() for variable in checkpoint.variables_of(made)]
    expected = rf"other models .{names[0] if names[0] != others[0] else names[1]}/kernel stands "
    with pytest.raises(UsageError, match=expected) as error:
        checkpoint.restore(path, made)
    assert "\n" not in str(error.value)
    for a, b in zip(before, checkpoint.variables_of(made)):
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("numbers", [(0, 1, 2, 5), (7, 8, 9, 10), (9, 10, 100, 101)])
def test_numbers_that_keras_gives_names_do_not_matter(numbers):
    """What stands between the models that are restored may differ: a teacher, other models."""

    def paths(numbers):
        for number in numbers:
            end = f"_{number}" if number else ""
            yield f"conv2d{end}/kernel"
            yield f"dropout{end}/seed_generator_{3 * number + 1}/seed_generator_state"
        for number in numbers:
            end = f"_{number}" if number else ""
            yield f"sgd{end}/conv2d{end}_kernel_momentum"

    assert checkpoint._places([*paths(numbers)]) == checkpoint._places([*paths((0, 1, 2, 3))])


def test_a_run_goes_on_in_a_process_that_has_made_other_models(tmp_path):
    path = tmp_path / "checkpoint.npz"
    keras.backend.clear_session()
    checkpoint.save(path, distiller(), {"epoch": 1})
    # Other distillers are made before, or between the student and its teacher. The name of the last
    # optimizer ends in a number of two digits.
    for before, student_first in ((0, True), (3, True), (5, False)):
        for _ in range(before):
            distiller()
        teacher = None if student_first else tiny.model(8, seed=2)
        student = tiny.model(4, dropout=0.5, seed=1)
        teacher = teacher or tiny.model(8, seed=2)
        made = tfkd.KnowledgeDistiller(student, teacher, ["kd", tiny.Hint()])
        made.compile(tfkd.optimizers.SGD(0.05, 0.9))
        assert checkpoint.restore(path, made).state == {"epoch": 1}


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="file.txt could not be written .No space left on device"):
        files.write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("262144 requested and 1024 written"),
        OSError("Can't synchronously write data (errno = 28, error message = 'No space left ...')"),
        PermissionError(13, "Permission denied", "some/file"),
    ],
)
def test_a_full_disk_leaves_both_checkpoints(tmp_path, made, monkeypatch, error):
    path = tmp_path / "checkpoint.npz"
    for epoch in (1, 2):
        checkpoint.save(path, made, {"epoch": epoch})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(UsageError, match="checkpoint.npz could not be written .(No space|Permiss)"):
        checkpoint.save(path, made, {"epoch": 3})
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_other_errors_while_writing_stay_what_they_are(tmp_path):
    def fail(temporary):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        files.write(tmp_path / "file.txt", fail)
