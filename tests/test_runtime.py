import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import tfkd
from tfkd import runtime
from tfkd.errors import UsageError


@pytest.mark.parametrize(
    "arguments, kind, replicas",
    [
        (("auto",), type(tf.distribute.get_strategy()), 1),
        (("auto", 2), tf.distribute.MirroredStrategy, 2),
        (("one_device",), type(tf.distribute.get_strategy()), 1),
        (("mirrored", 4), tf.distribute.MirroredStrategy, 4),
    ],
)
def test_strategies(arguments, kind, replicas):
    strategy = runtime.strategy(*arguments)
    assert isinstance(strategy, kind) and strategy.num_replicas_in_sync == replicas


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("horovod",), "Unknown strategy 'horovod': .* one_device, mirrored, multi_worker, tpu"),
        (("parameter_server",), "not supported: Keras 3 does not train under parameter servers"),
        (("central_storage",), "'central_storage' is not supported: .* use mirrored"),
        (("multi_worker",), "needs the workers in the environment variable TF_CONFIG, like {"),
        (("multi_worker", 2), "replicas=2 is for mirrored"),
        (("tpu",), "found no TPU: set TPU_NAME"),
        (("one_device", 2), "1 replica, not 2"),
        (("mirrored", 0), "at least 1"),
        (("mirrored", 64), "has already started"),
    ],
)
def test_wrong_strategies(arguments, message):
    with pytest.raises(UsageError, match=message):
        runtime.strategy(*arguments)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{cluster", "TF_CONFIG is not JSON as TensorFlow wants it"),
        ("[1]", "TF_CONFIG is not JSON as TensorFlow wants it"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "must say which worker this is, like"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}',
            "already started, and workers must meet before",
        ),
    ],
)
def test_wrong_workers(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    tf.zeros(()).numpy()
    with pytest.raises(UsageError, match=message):
        runtime.strategy("auto")


def test_a_strategy_that_cannot_train_is_refused_where_a_distiller_is_built():
    with (
        tf.distribute.experimental.CentralStorageStrategy().scope(),
        pytest.raises(UsageError, match="CentralStorageStrategy is not supported: .* mirrored"),
    ):
        tfkd.KnowledgeDistiller(tiny.model())


def test_building_in_no_scope_and_training_in_one_is_refused():
    distiller = tfkd.KnowledgeDistiller(tiny.model())
    distiller.compile("sgd")
    with (
        runtime.strategy("mirrored", 2).scope(),
        pytest.raises(UsageError, match="built under no strategy .* MirroredStrategy: build"),
    ):
        distiller.fit(*tiny.data(8), verbose=0)


@pytest.mark.slow
def test_fit_may_be_called_outside_of_the_scope_it_was_built_in():
    with runtime.strategy("mirrored", 2).scope():
        distiller = tfkd.KnowledgeDistiller(tiny.model(seed=1), tiny.model(seed=2))
        distiller.compile("sgd", accumulation_steps=2)
    distiller.fit(*tiny.data(15), batch_size=4, verbose=0)
    assert distiller.evaluate(*tiny.data(15), batch_size=4, verbose=0) > 0


def test_one_process_is_the_chief_and_waits_for_nobody(tmp_path):
    assert runtime.is_chief() and runtime.workers() == 1
    assert runtime.all_gather_int(3) == [3]
    with runtime.chief_first(), runtime.folder_of_worker(tmp_path) as folder:
        assert folder == tmp_path


def test_unknown_precision():
    with pytest.raises(UsageError, match="Unknown precision 'float8'"):
        runtime.set_precision("float8")


def test_precision_is_the_policy_of_new_layers():
    runtime.set_precision("mixed_bfloat16")
    assert keras.layers.Dense(1).compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "gpu, cpu, expected",
    [
        ((8, 0), "", "mixed_bfloat16"),
        ((7, 5), "avx512_bf16", "float32"),
        (None, "sse avx512_bf16 fma", "mixed_bfloat16"),
        (None, "amx_bf16 amx_tile", "mixed_bfloat16"),
        (None, "avx512f", "float32"),
        (None, None, "float32"),
    ],
)
def test_auto_is_the_precision_that_the_devices_have(gpu, cpu, expected, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    if cpu is not None:
        info.write_text(f"processor\t: 0\nflags\t\t: fpu {cpu}\nbugs\t: none\n", "utf-8")
    monkeypatch.setattr(runtime.devices, "_CPU_INFO", info)
    gpus = [] if gpu is None else ["gpu"]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    details = {"compute_capability": gpu}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert runtime.set_precision("auto") == keras.config.dtype_policy().name == expected


def test_batches_are_gathered_and_shared_over_replicas():
    strategy = runtime.strategy("mirrored", 2)
    sizes = strategy.experimental_distribute_values_from_function(
        lambda context: tf.range(3.0 + context.replica_id_in_sync_group)
    )

    @tf.function
    def run(values):
        def step(value):
            gathered, none = runtime.gather_batch((value, None))
            assert none is None
            return gathered, runtime.share_of_batch(tf.size(value))

        return strategy.run(step, (values,))

    gathered, shares = run(sizes)
    for value in strategy.experimental_local_results(gathered):
        assert value.numpy().tolist() == [0, 1, 2, 0, 1, 2, 3]
    shares = [float(share) for share in strategy.experimental_local_results(shares)]
    assert shares == pytest.approx([3 / 7, 4 / 7])


def test_one_replica_is_left_alone():
    value = tf.ones((2, 3))
    assert runtime.gather_batch(value) is value
    assert runtime.share_of_batch(tf.constant(2)) == 1.0


def test_batch_normalization_is_synchronized_only_over_several_replicas():
    """And nothing of it is saved: Keras refuses to load `synchronized=True` elsewhere."""

    def moments(strategy):
        with strategy.scope():
            model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.BatchNormalization()])
            assert not model.layers[0].get_config()["synchronized"]
            # Two replicas with one pixel each, 0 and 1.
            images = strategy.experimental_distribute_values_from_function(
                lambda context: tf.fill((1, 1, 1, 1), float(context.replica_id_in_sync_group))
            )

            @tf.function
            def run():
                strategy.run(lambda x: model(x, training=True), (images,))

            with runtime.batch_normalization_of(model):
                run()
        return float(model.layers[0].moving_variance.numpy()[0])

    assert moments(runtime.strategy("mirrored", 2)) == pytest.approx(0.99 + 0.01 * 0.25)
    assert moments(runtime.strategy("one_device")) == pytest.approx(0.99)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_draw_what_one_device_draws(replicas):
    def draw(strategy, sizes):
        with strategy.scope():
            seed = keras.random.SeedGenerator(3)
            size = strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(sizes[context.replica_id_in_sync_group])
            )

            @tf.function
            def rows(size):
                return runtime.draw_per_sample(
                    lambda samples: keras.random.uniform((samples, 2), seed=seed), size
                )

            drawn = [strategy.run(rows, (size,)) for _ in range(2)]
        return [np.concatenate(strategy.experimental_local_results(part)) for part in drawn]

    sizes = [3, 2, 1, 2][:replicas]
    one = draw(runtime.strategy("mirrored", 1), [sum(sizes)])
    np.testing.assert_array_equal(draw(runtime.strategy("mirrored", replicas), sizes), one)
    assert np.any(one[0] != one[1])


@pytest.mark.parametrize(
    "visible, driver, with_cuda, expected",
    [
        (None, False, True, ""),
        ("-1", True, True, ": CUDA_VISIBLE_DEVICES hides them"),
        (None, True, True, ", though there is an NVIDIA driver: CUDA's libraries may be missing"),
        (None, True, False, ", though there .*: this TensorFlow is built without CUDA"),
    ],
)
def test_a_missing_gpu_is_told(visible, driver, with_cuda, expected, tmp_path, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        runtime.devices, "_NVIDIA_DRIVER", tmp_path if driver else tmp_path / "none"
    )
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: with_cuda)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * (kind == "CPU"))
    line = runtime.describe_devices()
    start = r"devices: 1 CPU \(no GPU that TensorFlow can use"
    assert re.fullmatch(f"{start}{expected}.*" if expected else rf"{start}\)", line), line


def test_gpus_are_named(monkeypatch):
    there = {"CPU": ["cpu"], "GPU": ["one", "two"]}
    strategy = runtime.strategy("mirrored", 2)
    monkeypatch.setattr(tf.config, "list_physical_devices", there.get)
    details = {"device_name": "NVIDIA H100"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert runtime.describe_devices() == "devices: 2 GPUs (NVIDIA H100), 1 of them used"
    with strategy.scope():
        assert runtime.describe_devices() == "devices: 2 GPUs (NVIDIA H100), 2 replicas"
