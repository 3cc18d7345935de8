"""Layers that the families share, padded, normalised and initialised as in PyTorch."""

import math
import zlib

import keras
from keras import layers


class Builder:
    """Adds layers with weights to a functional model, each with its own random seed.

    Args:
        seed: Integer, from which the seed of every layer is derived together with the layer's
            name; or None, where the global Keras random state decides.
        kernels: How convolutions start: `"normal"`, He-normal on the fan-out
            `N(0, sqrt(2 / (size² · filters)))`, as the published ResNets, WRNs, VGGs and
            MobileNetV2; `"uniform"`, PyTorch's default `U(±1 / sqrt(fan_in))`, as the
            published ShuffleNets and MobileNetV1; or `"glorot"`,
            `U(±sqrt(6 / (fan_in + fan_out)))`, as the vision transformers of their first paper. So
            do dense layers inside of a network.
    """

    def __init__(self, seed, kernels="normal"):
        self.seed = seed
        self.kernels = kernels

    def convolution(self, x, filters, size, name, stride=1, use_bias=False):
        """Adds a convolution with a padding of `size // 2` on every side.

        Args:
            x: Tensor `(batch, height, width, channels)`.
            filters: Integer, the number of output channels.
            size: Odd integer, the side of the kernel.
            name: String, the layer's name.
            stride: Integer.
            use_bias: Boolean. The bias starts at zero.

        Returns:
            A tensor `(batch, ceil(height / stride), ceil(width / stride), filters)`.
        """
        channels = x.shape[-1]
        return layers.Conv2D(
            filters,
            size,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=use_bias,
            kernel_initializer=self._kernel(name, size**2 * channels, size**2 * filters),
            name=name,
        )(_padded(x, size, stride, name))

    def patches(self, x, filters, size, name):
        """Adds a convolution with bias of which size and stride are the same.

        Args:
            x: Tensor `(batch, height, width, channels)`. Sides that are no multiples of `size`
                are filled up with zeros.
            filters: Integer, the number of output channels.
            size: Integer, the side of a patch.
            name: String, the layer's name.

        Returns:
            A tensor `(batch, ceil(height / size), ceil(width / size), filters)`.
        """
        return layers.Conv2D(
            filters,
            size,
            strides=size,
            padding="same",
            kernel_initializer=self._kernel(name, size**2 * x.shape[-1], size**2 * filters),
            name=name,
        )(x)

    def depthwise_convolution(self, x, name, stride=1, size=3, use_bias=False):
        """Adds a convolution of each channel by itself, padded by `size // 2` on every side.

        Args:
            x: Tensor `(batch, height, width, channels)`.
            name: String, the layer's name.
            stride: Integer.
            size: Odd integer, the side of the kernel.
            use_bias: Boolean. The bias starts at zero.

        Returns:
            A tensor `(batch, ceil(height / stride), ceil(width / stride), channels)`.
        """
        # The published initialiser counts all channels in the fan-out of a depthwise kernel.
        return layers.DepthwiseConv2D(
            size,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=use_bias,
            depthwise_initializer=self._kernel(name, size**2, size**2 * x.shape[-1]),
            name=name,
        )(_padded(x, size, stride, name))

    def grouped_convolution(self, x, filters, groups, name):
        """Adds a 1x1 convolution in groups: each group of outputs sees one group of inputs.

        Written as one matrix product per group, because TensorFlow has no grouped convolution
        on CPUs: Keras sends `Conv2D(groups=...)` through XLA there, which takes several times
        as long.

        Args:
            x: Tensor `(batch, height, width, channels)`.
            filters: Integer, the number of output channels, divisible by `groups`.
            groups: Integer, which divides the number of input channels.
            name: String, the layer's name.

        Returns:
            A tensor `(batch, height, width, filters)`.
        """
        _, height, width, channels = x.shape
        inputs, outputs = channels // groups, filters // groups
        x = layers.Reshape((height, width, groups, inputs), name=f"{name}_split")(x)
        x = layers.EinsumDense(
            "bhwgi,gio->bhwgo",
            output_shape=(height, width, groups, outputs),
            kernel_initializer=self._kernel(name, inputs, filters),
            name=name,
        )(x)
        return layers.Reshape((height, width, filters), name=f"{name}_join")(x)

    def dense(self, x, units, name, activation=None):
        """Adds a dense layer of the features at each position; its bias starts at zero.

        Args:
            x: Tensor `(batch, ..., channels)`.
            units: Integer, the number of output features.
            name: String, the layer's name.
            activation: As in `keras.layers.Dense`.

        Returns:
            A tensor `(batch, ..., units)`.
        """
        kernel = self._kernel(name, x.shape[-1], units)
        return layers.Dense(units, activation, kernel_initializer=kernel, name=name)(x)

    def attention(self, x, heads, name):
        """Adds an attention of all tokens to all tokens; its biases start at zero.

        Args:
            x: Tensor `(batch, tokens, features)`.
            heads: Integer, which divides `features`.
            name: String, the layer's name.

        Returns:
            A tensor of the same shape.
        """
        features = x.shape[-1]
        start = self._kernel(name, features, features, seeded=False)
        layer = layers.MultiHeadAttention(
            heads, features // heads, kernel_initializer=start, name=name
        )
        outputs = layer(x, x)
        if self.seed is not None:
            # Keras gives the three projections one initialiser, and with a seed one value.
            for part in ("query", "key", "value", "output"):
                kernel = getattr(layer, f"{part}_dense").kernel
                draw = self._kernel(f"{name}/{part}", features, features)
                kernel.assign(draw(kernel.shape))
        return outputs

    def embedding(self, image, features, size, class_token, name):
        """Adds the tokens of a vision transformer: its patches, each with its position.

        One layer holds all of it: a dense layer of the pixels of a patch with a bias for each
        token, which is the position. The class token is the bias of a patch of zeros. Positions
        start about as large as patches of normalised pixels, `N(0, 0.5)`.

        Args:
            image: Tensor `(batch, height, width, channels)`. Sides that are no multiples of
                `size` are filled up with zeros, on the right and below.
            features: Integer, the features of a token.
            size: Integer, the side of a patch.
            class_token: Boolean, whether one token more comes first.
            name: String, the name of that layer.

        Returns:
            A tensor `(batch, tokens, features)`, row by row.
        """
        _, height, width, channels = image.shape
        x, rows, columns = image, -(-height // size), -(-width // size)
        if (rows * size, columns * size) != (height, width):
            missing = (0, rows * size - height), (0, columns * size - width)
            x = layers.ZeroPadding2D(missing, name=f"{name}_pad")(x)
        x = layers.Reshape((rows, size, columns, size * channels), name=f"{name}_split")(x)
        x = layers.Permute((1, 3, 2, 4), name=f"{name}_interleave")(x)
        x = layers.Reshape((rows * columns, size**2 * channels), name=f"{name}_patches")(x)
        if class_token:
            x = layers.ZeroPadding1D((1, 0), name=f"{name}_class_token")(x)
        limit = 1 / math.sqrt(x.shape[-1])
        return layers.EinsumDense(
            "btp,pf->btf",
            output_shape=(x.shape[1], features),
            bias_axes="tf",
            kernel_initializer=keras.initializers.RandomUniform(
                -limit, limit, seed=self._seed_of(name)
            ),
            bias_initializer=keras.initializers.RandomNormal(
                stddev=0.5, seed=self._seed_of(f"{name}/bias")
            ),
            name=name,
        )(x)

    def classifier(self, x, num_classes, kernel="uniform", bias="uniform"):
        """Adds the taps `pooled` and `logits`: global average pooling and a dense layer.

        Args:
            x: Tensor `(batch, height, width, channels)` or `(batch, tokens, features)`, or the
                pooled vector itself, `(batch, features)`.
            num_classes: Integer.
            kernel: `"uniform"`, PyTorch's default `U(±1 / sqrt(channels))`, or `"normal"`,
                `N(0, 0.01)`.
            bias: `"uniform"`, as the kernel's, or `"zeros"`.

        Returns:
            A tensor `(batch, num_classes)`, the logits.
        """
        pooling = {4: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling1D}
        if len(x.shape) in pooling:
            x = pooling[len(x.shape)](name="pooled")(x)
        limit = 1 / math.sqrt(x.shape[-1])
        kernel_seed, bias_seed = self._seed_of("logits"), self._seed_of("logits/bias")
        kernels = {
            "uniform": keras.initializers.RandomUniform(-limit, limit, seed=kernel_seed),
            "normal": keras.initializers.RandomNormal(stddev=0.01, seed=kernel_seed),
        }
        biases = {
            "uniform": keras.initializers.RandomUniform(-limit, limit, seed=bias_seed),
            "zeros": keras.initializers.Zeros(),
        }
        return layers.Dense(
            num_classes,
            kernel_initializer=kernels[kernel],
            bias_initializer=biases[bias],
            name="logits",
        )(x)

    def _kernel(self, name, fan_in, fan_out, seeded=True):
        seed = self._seed_of(name) if seeded else None
        if self.kernels == "normal":
            return keras.initializers.RandomNormal(stddev=math.sqrt(2 / fan_out), seed=seed)
        spread = 3 * fan_in if self.kernels == "uniform" else (fan_in + fan_out) / 2
        limit = math.sqrt(3 / spread)
        return keras.initializers.RandomUniform(-limit, limit, seed=seed)

    def _seed_of(self, name):
        # From the name rather than from a counter, so that a layer starts alike wherever a
        # network gains or loses another one.
        return None if self.seed is None else zlib.crc32(f"{self.seed}/{name}".encode())


def normalization(x, name):
    """Adds batch normalisation with PyTorch's momentum and epsilon.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        name: String, the layer's name.

    Returns:
        A tensor of the same shape.
    """
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def layer_normalization(x, name):
    """Adds layer normalisation with the epsilon of vision transformers; the shape stays."""
    return layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def relu(x, name):
    """Adds a ReLU; `name` is the layer's name, the shape stays."""
    return layers.ReLU(name=name)(x)


def channel_shuffle(x, groups, name):
    """Interleaves groups of channels: the first of each group, then the second of each.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        groups: Integer, which divides `channels`.
        name: String, the name of the last layer, whose output is the result.

    Returns:
        A tensor of the same shape.
    """
    _, height, width, channels = x.shape
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{name}_interleave")(x)
    return layers.Reshape((height, width, channels), name=name)(x)


def unit_names(stage, units):
    """Yields the names of a stage's units.

    Args:
        stage: Integer, counted from 1.
        units: Integer, the number of units of the stage.

    Yields:
        `(prefix, output)`: the prefix of the names of the unit's layers, and the name of the
        layer that ends it, which is the stage's tap for the last unit.
    """
    for unit in range(1, units + 1):
        prefix = f"stage{stage}_unit{unit}"
        yield prefix, f"stage{stage}" if unit == units else f"{prefix}_output"


def stages(builder, x, unit, widths, units, first_stride=1):
    """Adds stages of units, of which the first of each stage has a stride.

    Args:
        builder: A `Builder`.
        x: Tensor `(batch, height, width, channels)`.
        unit: Function `(builder, x, filters, stride, prefix, output)` that adds a unit.
        widths: Sequence of integers, the `filters` of each stage.
        units: Sequence of integers, the number of units of each stage.
        first_stride: Integer, the stride of the first stage; that of all others is 2.

    Returns:
        The tensor behind the last stage.
    """
    for stage, (filters, number) in enumerate(zip(widths, units, strict=True), start=1):
        stride = first_stride if stage == 1 else 2
        for prefix, output in unit_names(stage, number):
            x = unit(builder, x, filters, stride, prefix, output)
            stride = 1
    return x


def _padded(x, size, stride, name):
    # Keras' "same" pads a strided convolution on one side only where the input is even;
    # PyTorch pads both sides alike.
    if stride == 1 or size == 1:
        return x
    return layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
