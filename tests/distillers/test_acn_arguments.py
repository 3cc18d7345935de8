"""ACN: what its constructor and compile take, and the line that tells what they do not."""

import keras
import pytest
import tiny
from acn_game import SMALL
from keras import layers
from mutual_learning import students

import tfkd
from tfkd.errors import UsageError


def linear(shape):
    def model():
        inputs = keras.Input(shape)
        return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))

    return lambda: [model(), model()]


def anywhere():
    made = []
    for _ in range(2):
        inputs = keras.Input((None, None, 3))
        made.append(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(inputs))))
    return made


NUMBER = "must be a number of at least 0; received"
WHOLE = "must be a whole number greater than 0; received"
SHARE = "must be a number between 0 and 1; received"
WRONG = [
    ({"students": lambda: [tiny.model()]}, "students must be a list of at least two"),
    ({"students": linear((30,))}, r"ACN generates images .* of shape \(None, 30\)"),
    ({"students": linear((7, 7, 3))}, r"generated from 8x8 pixels up.*received \(7, 7, 3\)"),
    ({"students": anywhere}, "of a size that is fixed"),
    ({"temperature": 0.0}, "temperature must be a number greater than 0"),
    ({"mutual_weight": -1.0}, "mutual_weight must be a number of at least 0"),
    ({"divergent_weight": -1.0}, "divergent_weight must be a number of at least 0"),
    ({"targets": "median"}, "Unknown targets 'median'"),
    ({"image_mean": "grey"}, "image_mean and image_std must be numbers.*'grey'"),
    ({"image_mean": (0.5, 0.5)}, "image_mean must be .* each of the 3 channels; received 2"),
    ({"image_std": (0.5, 0.5)}, "image_std must be .* each of the 3 channels; received 2"),
    ({"image_std": 0.0}, "image_std above 0; received .* 0.0"),
    ({"image_std": (1.0, -1.0, 1.0)}, "image_std above 0"),
    ({"image_mean": float("nan")}, "must be numbers.* received nan"),
    ({"image_std": ((1.0,),)}, "one for each channel, and image_std above 0"),
    ({"warm_up": -1}, "warm_up must be a whole number of epochs, at least 0; received -1"),
    ({"warm_up": 1.5}, "warm_up must be a whole number of epochs, at least 0; received 1.5"),
    ({"warm_up": True}, "warm_up must be .* received True"),
    ({"adversarial_every": 1}, "adversarial_every must be 0, for both .*at least 2; received 1"),
    ({"adversarial_every": -2}, "adversarial_every must be 0, .* received -2"),
    ({"adversarial_every": 2.0}, "adversarial_every must be 0, .* received 2.0"),
    ({"residual": "strong"}, "Unknown residual 'strong': .* weak_skip, weak_residual"),
    ({"residual_weight": 1.5}, f"residual_weight {SHARE} 1.5"),
    ({"residual_weight": -0.1}, f"residual_weight {SHARE} -0.1"),
    ({"divergence_weight": -1}, f"divergence_weight {NUMBER} -1"),
    ({"divergence_weight": float("nan")}, f"divergence_weight {NUMBER} nan"),
    ({"divergence_temperature": 0}, "divergence_temperature must be a number greater than 0"),
    ({"divergence_cap": 0}, "divergence_cap must be above 0, and at most 1 for no cap"),
    ({"divergence_cap": 1.1}, f"divergence_cap {SHARE} 1.1"),
    ({"label_weight": "much"}, f"label_weight {NUMBER} 'much'"),
    ({"distance_weight": -1}, f"distance_weight {NUMBER} -1"),
    ({"distance_limit": -1}, f"distance_limit {NUMBER} -1"),
    ({"acceptance_threshold": -1}, f"acceptance_threshold {NUMBER} -1"),
    ({"divergent_mean": "median"}, "Unknown divergent_mean 'median': .* batch, accepted"),
    ({"generated_statistics": "both"}, "Unknown generated_statistics 'both': .*separate, shared"),
    ({"generator_clip_norm": 0}, "generator_clip_norm must be a number greater than 0"),
    ({"noise_size": 0}, f"noise_size {WHOLE} 0"),
    ({"generator_width": 2.5}, f"generator_width {WHOLE} 2.5"),
    ({"generator_blocks": -1}, f"generator_blocks {WHOLE} -1"),
    ({"discriminator_width": True}, f"discriminator_width {WHOLE} True"),
    ({"filter_divergent": "yes"}, "filter_divergent must be True or False; received 'yes'"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_wrong_arguments_are_one_line(arguments, message):
    pair = [tiny.shared(name=f"tiny{seed}", seed=seed) for seed in (1, 2)]
    arguments = {"students": lambda: pair, **arguments}
    with pytest.raises(UsageError, match=message) as error:
        tfkd.ACN(arguments.pop("students")(), **{**SMALL, **arguments}).compile()
    assert "\n" not in str(error.value)


SGD = keras.optimizers.SGD()
COMPILED_WRONG = [
    ({"policy_optimizer": "adam"}, "argument of ACN.compile 'policy_optimizer': .*generator_opti"),
    ({"generator_optimizer": "adm"}, "generator_optimizer must be a Keras optimizer, its name"),
    ({"discriminator_optimizer": {"name": "adm"}}, "ptimizer 'adm'"),
    ({"generator_optimizer": SGD, "discriminator_optimizer": SGD}, "must be different objects"),
    ({"optimizer": SGD, "generator_optimizer": SGD}, "must be different objects"),
    ({"peer_optimizers": [SGD], "generator_optimizer": SGD}, "must be different objects"),
    ({"peer_optimizers": ["sgd", "sgd"]}, "one for each of the 1 students after the first"),
]


@pytest.mark.parametrize("arguments, message", COMPILED_WRONG)
def test_wrong_arguments_of_compile_are_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        tfkd.ACN(students(), **SMALL).compile(**arguments)
    assert "\n" not in str(error.value)


def test_the_optimizers_of_the_game_are_those_of_gans():
    distiller = tfkd.ACN(students(), **SMALL)
    distiller.compile()
    for name in ("generator_optimizer", "discriminator_optimizer"):
        optimizer, _ = distiller.optimizers()[name]
        assert isinstance(optimizer, keras.optimizers.Adam)
        found = float(optimizer.learning_rate), optimizer.beta_1
        assert found == (pytest.approx(2e-4), 0.5)
