"""AlexNet, in the single-column form of torchvision."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import adaptive_average_pool
from kernsym_jax.models.variant import Variant, flatten_channels_first, torch_dense, torch_uniform


class AlexNet(nn.Module):
    """Five convolutions, three max-poolings and three dense layers.

    Layers have torchvision's numbers: the convolutions are ``features_0``, ``_3``, ``_6``, ``_8``
    and ``_10``, the poolings ``features_2``, ``_5`` and ``_12``, the dense layers
    ``classifier_1``, ``_4`` and ``_6``.

    Attributes:
      num_classes: number of outputs.
      width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
      hidden: units of the first two dense layers.
      dropout: share of the inputs of those layers that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    """

    num_classes: int = 1000
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant

        def conv(number: int, x: jax.Array, share: int, kernel_size: int, **fields: Any) -> Any:
            uniform = torch_uniform(x.shape[-1] * kernel_size**2)
            return v.conv(
                f"features_{number}",
                share * self.width,
                kernel_size,
                use_bias=True,
                kernel_init=uniform,
                bias_init=uniform,
                **fields,
            )

        x = images.astype(v.dtype)
        down = v.down("features_0_down", 4, 0)
        x = conv(0, x, 1, 11, stride=down.inside, pad=2)(x, down.position(train))
        x, _ = down(nn.relu(x), train)
        x = v.max_pool("features_2", x, 3, 0, index=1, train=train)
        x = nn.relu(conv(3, x, 3, 5)(x))
        x = v.max_pool("features_5", x, 3, 0, index=2, train=train)
        x = nn.relu(conv(6, x, 6, 3)(x))
        x = nn.relu(conv(8, x, 4, 3)(x))
        x = nn.relu(conv(10, x, 4, 3)(x))
        x = v.max_pool("features_12", x, 3, 0, index=3, train=train)
        x = flatten_channels_first(adaptive_average_pool(x, 6))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_0")(x)
        x = nn.relu(torch_dense("classifier_1", self.hidden, x, v.dtype))
        x = nn.Dropout(self.dropout, deterministic=not train, name="classifier_3")(x)
        x = nn.relu(torch_dense("classifier_4", self.hidden, x, v.dtype))
        return torch_dense("classifier_6", self.num_classes, x.astype(jnp.float32))
