"""Run by test_pipeline.py in each of two workers: prints the labels of its part of each batch."""

import json

import tensorflow as tf

# It has to be made before anything runs.
strategy = tf.distribute.MultiWorkerMirroredStrategy()

from tfkd.data import load  # noqa: E402

distributed = strategy.experimental_distribute_dataset(load().train)
parts = [strategy.experimental_local_results(labels) for _, labels in distributed]
print(json.dumps([part[0].numpy().tolist() for part in parts]))
