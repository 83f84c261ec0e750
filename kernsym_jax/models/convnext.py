"""ConvNeXts, as torchvision defines them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop
from kernsym_jax.models.variant import Variant

_INIT = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """A depthwise 7×7 convolution, LayerNorm, and two dense layers on the channels of each pixel.

    Layers have torchvision's numbers, which count activations too: ``block_0``, ``block_2``,
    ``block_3`` and ``block_5``; ``layer_scale`` (channels, 1, 1) scales what the block adds.

    Attributes:
      skipped: probability that training skips the block for a sample.
      variant: padding, downsampling and type of the computation.
    """

    skipped: float
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to the same shape."""
        v, channels = self.variant, x.shape[-1]
        y = v.conv("block_0", channels, 7, groups=channels, use_bias=True)(x)
        y = _layer_norm(v, "block_2", y)
        y = _dense(v, "block_3", 4 * channels)(y)
        y = _dense(v, "block_5", channels)(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (channels, 1, 1))
        y = y * scale.astype(y.dtype).reshape(1, 1, 1, channels)
        return v.stochastic_depth(y, self.skipped, train) + crop(x, v.margin(7))


class ConvNeXt(nn.Module):
    """Stages of blocks, each after a strided convolution whose windows do not overlap.

    Layers are ``features_0_0`` (its LayerNorm ``features_0_1``), ``features_1_0/block_0``, …,
    ``features_2_0`` (LayerNorm) and ``features_2_1`` before the second stage, …, ``classifier_0``
    (LayerNorm) and ``classifier_2``. The strided convolutions are never padded, whatever the
    ``padding``.

    Attributes:
      num_classes: number of outputs.
      blocks: number of blocks of each stage.
      width: channels of the first stage, doubled at each further one.
      stochastic_depth: probability that training skips the last block for a sample; it grows
        linearly from 0 at the first block.
      variant: padding, downsampling and type of the computation.

    Reference: Liu et al., "A ConvNet for the 2020s", CVPR 2022, section 3.
    """

    num_classes: int = 1000
    blocks: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    stochastic_depth: float = 0.1
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(self.variant, kernel_init=_INIT)
        x = _patches(v, "features_0_0", images.astype(v.dtype), self.width, 4, index=0, train=train)
        x = _layer_norm(v, "features_0_1", x)
        done, last = 0, sum(self.blocks) - 1
        for stage, count in enumerate(self.blocks):
            if stage > 0:
                name = f"features_{2 * stage}"
                x = _layer_norm(v, f"{name}_0", x)
                x = _patches(v, f"{name}_1", x, 2 * x.shape[-1], 2, index=stage, train=train)
            for i in range(count):
                skipped = self.stochastic_depth * done / max(last, 1)
                x = Block(skipped, v, name=f"features_{2 * stage + 1}_{i}")(x, train)
                done += 1
        x = x.astype(jnp.float32).mean((1, 2))
        v = dataclasses.replace(v, dtype=jnp.float32)
        x = _layer_norm(v, "classifier_0", x)
        return _dense(v, "classifier_2", self.num_classes)(x)


def _patches(
    v: Variant, name: str, x: jax.Array, features: int, size: int, *, index: int, train: bool
) -> jax.Array:
    """Convolves with kernel and stride ``size``, as strided place number ``index``."""
    down = v.down(f"{name}_down", size, index)
    x = v.extend_for_step(x, size, down)
    conv = v.conv(name, features, size, stride=down.inside, pad=0, use_bias=True)
    return down(conv(x, down.position(train)), train)[0]


def _layer_norm(v: Variant, name: str, x: jax.Array) -> jax.Array:
    """Normalises the channels of each pixel in float32."""
    # The fast variance, E[x²] - E[x]², loses digits where the mean is large.
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(v.dtype)


def _dense(v: Variant, name: str, features: int) -> nn.Dense:
    return nn.Dense(features, dtype=v.dtype, kernel_init=v.kernel_init, name=name)
