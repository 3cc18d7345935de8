"""Workers of multi-process training: the chief, barriers and gathering."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import tensorflow as tf


def workers(strategy=None):
    """Returns the number of worker processes.

    Args:
        strategy: A `tf.distribute.Strategy`; None for the current one.
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief():
    """Whether this process writes the shared files."""
    return tf.distribute.get_strategy().extended.should_checkpoint


@contextlib.contextmanager
def chief_first():
    """Runs the context on the chief first, then on the other workers.

    Example:
    ```python
    with tfkd.runtime.chief_first():
        data = tfkd.data.load("cifar100")  # the chief prepares it, the others find it
    ```
    """
    if not is_chief():
        wait_for_all()
    yield
    if is_chief():
        wait_for_all()


def wait_for_all():
    """Waits until all workers have called it; returns at once where there is one."""
    if workers() > 1:
        all_gather_int(0)


def all_gather_int(number):
    """Returns the list of all workers' numbers.

    Args:
        number: Integer.
    """
    if workers() == 1:
        return [number]
    strategy = tf.distribute.get_strategy()
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    position = resolver.task_id + (has_chief and resolver.task_type != "chief")
    row = tf.one_hot(position, workers(), dtype="int64") * number
    return strategy.reduce("SUM", row, axis=None).numpy().tolist()


@contextlib.contextmanager
def folder_of_worker(path):
    """Yields a folder to the chief, and to every other worker a copy that is deleted at the end.

    So all read the same files, and only the chief writes permanent ones. The copy is safe since
    the chief writes only after models are built, which all workers do together.

    Args:
        path: Path of the folder, which need not exist; None stays None.
    """
    if is_chief() or path is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tfkd-worker-") as folder:
        own = pathlib.Path(folder, pathlib.Path(path).name or "folder")
        if os.path.isdir(path):
            # Files that are only written need no copy; some may vanish during the copy.
            ignore = shutil.ignore_patterns("tensorboard", "pictures", "*.partial.*")
            shutil.copytree(path, own, ignore=ignore)
        yield str(own)
