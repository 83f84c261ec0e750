"""U-Net, a network that assigns a class to every pixel."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import upsample
from kernsym_jax.models.variant import Variant, torch_uniform

ENCODERS = ("strided", "max_pool")


class DownBlock(nn.Module):
    """Two 3×3 convolutions; the first one, or a pooling before it, takes the stride.

    Attributes:
      features: channels.
      stride: step of the block, 1 or 2.
      index: number of the block's strided place in the network, from 0.
      encoder: one of ``ENCODERS``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    stride: int
    index: int
    encoder: str
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """Returns a map (batch, out_h, out_w, features) and the phases of the downsampling."""
        v, stride, phases = self.variant, self.stride, None
        if self.stride > 1 and self.encoder == "max_pool":
            x, phases = v.max_pool_and_phases("pool", x, 2, 0, index=self.index, train=train)
            stride = 1
        down = v.down("conv1_down", stride, self.index)
        x = v.conv("conv1", self.features, 3, stride=down.inside)(x, down.position(train))
        x, chosen = down(nn.relu(v.norm("bn1")(x, train)), train)
        x = nn.relu(v.norm("bn2")(v.conv("conv2", self.features, 3)(x), train))
        return x, phases if chosen is None else chosen


class UpBlock(nn.Module):
    """Upsampling to the size of the skip, concatenation with it, and two 3×3 convolutions.

    A transposed convolution would add a checkerboard, because its windows overlap unevenly if the
    stride does not divide the kernel size. So the block interpolates and then convolves.

    Attributes:
      features: channels.
      first: position of the first pixel that the downsampling kept, see ``layers.upsample``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    features: int
    first: float
    variant: Variant

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array, phases: jax.Array | None, train: bool = False
    ) -> jax.Array:
        """Returns a map (batch, height, width, features) of the size of ``skip``."""
        v = self.variant
        size = (skip.shape[1], skip.shape[2])
        x = upsample(x, size, phases=phases, first=self.first, padding=v.padding)
        x = jnp.concatenate([skip, x], axis=-1)
        x = nn.relu(v.norm("bn1")(v.conv("conv1", self.features, 3)(x), train))
        return nn.relu(v.norm("bn2")(v.conv("conv2", self.features, 3)(x), train))


class UNet(nn.Module):
    """An encoder and a decoder with skip connections, for images of any height and width.

    Layers are ``down1/conv1``, ``down1/bn1``, ``down1/conv2``, …, on the way back from the lowest
    level ``up2/conv1``, …, ``up1/conv2``, and ``head``. The number is that of the level: ``down1``
    and ``up1`` work at the size of the image. With circular padding and ``aps`` or ``lps``, a
    circular shift of the image shifts the logits by the same amount, if ``2**(depth - 1)`` divides
    the size of the image.

    Attributes:
      num_classes: number of classes.
      width: channels of the first level, doubled at each further one.
      depth: number of levels; each has half the size of the level above.
      encoder: layer that takes the stride: a ``strided`` convolution or a 2×2 ``max_pool``.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: Ronneberger et al., "U-Net", MICCAI 2015, here with padding and BatchNorm; the way up
      by phase, Rojas-Gomez et al., "Learnable Polyphase Sampling", NeurIPS 2022.
    """

    num_classes: int = 11
    width: int = 32
    depth: int = 4
    encoder: str = "strided"
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, h, w, num_classes), float32, of images (batch, h, w, channels)."""
        self._check()
        v = dataclasses.replace(self.variant, kernel_init=nn.initializers.he_normal())
        x = images.astype(v.dtype)
        levels = []
        for level in range(1, self.depth + 1):
            x, phases = DownBlock(
                features=self.width * 2 ** (level - 1),
                stride=1 if level == 1 else 2,
                index=level - 2,
                encoder=self.encoder,
                variant=v,
                name=f"down{level}",
            )(x, train)
            levels.append((x, phases))
        first = 0.5 if self.encoder == "max_pool" else 0.0
        for level in range(self.depth - 1, 0, -1):
            skip, phases = levels[level - 1][0], levels[level][1]
            x = UpBlock(self.width * 2 ** (level - 1), first, v, name=f"up{level}")(
                x, skip, phases, train
            )
        # A 1×1 convolution needs no padding. It runs in float32, as all logits are float32.
        uniform = torch_uniform(x.shape[-1])
        fields = {"use_bias": True, "kernel_init": uniform, "bias_init": uniform}
        return v.conv("head", self.num_classes, 1, dtype=jnp.float32, **fields)(x)

    def _check(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"unet needs a width and depth of 1 or more, got {self.width} and {self.depth}"
            )
        if self.encoder not in ENCODERS:
            raise ValueError(f"unet: unknown encoder {self.encoder!r}; wanted one of {ENCODERS}")
        if self.variant.padding == "valid":
            raise ValueError(
                "unet: padding 'valid' takes the border off every map, but each pixel needs a "
                "class; use a padding that keeps the size"
            )
