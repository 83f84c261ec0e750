"""VGG networks with and without BatchNorm, as torchvision defines them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import adaptive_average_pool
from kernsym_jax.models.variant import Variant, flatten_channels_first


class VGG(nn.Module):
    """Five stages of 3×3 convolutions with a max-pooling after each, and three dense layers.

    Layers have torchvision's numbers, which count activations too: ``features_0``, … and
    ``classifier_0``, ``_3`` and ``_6``.

    Attributes:
      num_classes: number of outputs.
      convs: number of convolutions of each stage.
      batch_norm: whether a BatchNorm follows each convolution.
      width: channels of the first stage; doubled at the next three.
      hidden: units of the first two dense layers.
      dropout: share of these units that training drops.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Simonyan & Zisserman, "Very Deep Convolutional Networks", ICLR 2015, table 1.
    """

    num_classes: int = 1000
    convs: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = self.variant
        x = images.astype(v.dtype)
        number = 0
        for stage, count in enumerate(self.convs):
            for _ in range(count):
                features = self.width * 2 ** min(stage, 3)
                x = v.conv(f"features_{number}", features, 3, use_bias=True)(x)
                if self.batch_norm:
                    number += 1
                    x = v.norm(f"features_{number}")(x, train)
                x = nn.relu(x)
                number += 2
            x = v.max_pool(f"features_{number}", x, 2, 0, index=stage, train=train)
            number += 1
        x = flatten_channels_first(adaptive_average_pool(x, 7))
        for name, after in (("classifier_0", "classifier_2"), ("classifier_3", "classifier_5")):
            x = nn.relu(_dense(name, self.hidden, v.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=after)(x)
        return _dense("classifier_6", self.num_classes, jnp.float32)(x)


def _dense(name: str, features: int, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(0.01), name=name)
