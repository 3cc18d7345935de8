"""Writes pictures for TensorBoard."""

import pathlib

import tensorflow as tf


def picture_writer(folder):
    """Returns a writer of pictures for TensorBoard: one event file, until it is closed.

    Args:
        folder: Path of the work directory.
    """
    return tf.summary.create_file_writer(str(pathlib.Path(folder, "tensorboard", "pictures")))


def show_in_tensorboard(folder, path, name, epoch, writer=None):
    """Adds a picture to an event file of TensorBoard.

    Args:
        folder: Path of the work directory.
        path: Path of the PNG.
        name: String, its title.
        epoch: Integer, counted from 1.
        writer: What `picture_writer(folder)` returned, which stays open for further pictures;
            None to open one for this picture alone.
    """
    image = tf.io.decode_png(tf.io.read_file(str(path)), channels=3)
    own = picture_writer(folder) if writer is None else writer
    with own.as_default():
        tf.summary.image(name, image[None], step=epoch)
    # So a run that is killed has its pictures.
    own.flush()
    if writer is None:
        own.close()
