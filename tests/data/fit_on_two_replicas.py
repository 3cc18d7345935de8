"""Run by test_pipeline.py: what Keras shows a model under tf.distribute, epoch by epoch."""

import keras
import numpy as np
import tensorflow as tf

from tfkd.data import load

BATCH_SIZE = 66


def checksum(_, outputs):
    """What the model saw of each image, as a metric."""
    return outputs[:, 0]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")

    for cache in (True, False):
        print("memory" if cache else "streamed")
        data = load(batch_size=BATCH_SIZE, cache=cache)
        expected = []
        for _ in range(3):
            images = np.concatenate([images for images, _ in data.train.as_numpy_iterator()])
            expected.append(np.mean(images.reshape(-1, 64) @ weights[:, 0]))
        with strategy.scope():
            inputs = keras.Input(data.input_shape)
            head = keras.layers.Dense(10, use_bias=False)
            model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
            head.set_weights([weights])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.0), loss, metrics=[checksum])
        data.start_epoch(0)
        history = model.fit(
            data.train, validation_data=data.validation, epochs=3, verbose=0
        ).history
        np.testing.assert_allclose(history["checksum"], expected, rtol=1e-4)
        assert len({round(float(value), 3) for value in expected}) == 3
        # The last batch of 38 is shared out too, and none is lost.
        assert model.predict(data.test, verbose=0).shape == (500, 10)
        print("ok")


if __name__ == "__main__":
    main()
