"""Several processes that train together: who writes, and how they wait for each other."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import tensorflow as tf


def workers(strategy=None):
    """Returns how many processes train together.

    Args:
        strategy: A `tf.distribute.Strategy`; None for that in whose scope this is called.
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def is_chief():
    """Whether this process is the one that writes what all workers share."""
    return tf.distribute.get_strategy().extended.should_checkpoint


@contextlib.contextmanager
def chief_first():
    """Lets the chief through first, and the other workers when it is done.

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
    """Returns when all workers have called it; at once where there is one."""
    if workers() > 1:
        all_gather_int(0)


def all_gather_int(number):
    """Returns a number that each worker has as a list, with one for each of them.

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
    """Gives the chief a folder itself, and every other worker a copy, which is deleted at the end.

    So all read the same files, and only the chief writes those that stay. To copy is safe as long
    as the chief builds models, which all do together, before it writes.

    Args:
        path: Path of the folder, which need not exist; None stays None.
    """
    if is_chief() or path is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tfkd-worker-") as folder:
        own = pathlib.Path(folder, pathlib.Path(path).name or "folder")
        if os.path.isdir(path):
            # What is only written needs no copy; a file may vanish as it is looked at.
            ignore = shutil.ignore_patterns("tensorboard", "pictures", "*.partial.*")
            shutil.copytree(path, own, ignore=ignore)
        yield str(own)
