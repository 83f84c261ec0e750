"""ResNets for small images, with shortcuts without parameters (option A)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers import crop, subsample
from kernsym_jax.models.variant import Variant, torch_dense


class CifarBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters.

    If the block has a stride, the shortcut keeps every other pixel and appends channels of zeros.

    Attributes:
      planes: channels.
      stride: step of the block.
      index: number of the block's strided place in the network, from 0.
      variant: padding, downsampling, BatchNorm axis and type of the computation.
    """

    planes: int
    stride: int
    index: int
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, out_h, out_w, planes)."""
        v = self.variant
        down = v.down("conv1_down", self.stride, self.index)
        position = down.position(train)
        y = v.conv("conv1", self.planes, 3, stride=down.inside)(x, position)
        y, phases = down(nn.relu(v.norm("bn1")(y, train)), train)
        y = v.norm("bn2")(v.conv("conv2", self.planes, 3)(y), train)
        x, _ = down(crop(x, v.margin(3)), train, phases)
        x = crop(subsample(x, down.inside, position), v.margin(3))
        missing = self.planes - x.shape[-1]
        near = missing // 2
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (near, missing - near)))
        return nn.relu(y + x)


class CifarResNet(nn.Module):
    """A residual network with 6n + 2 layers for images of 32×32 pixels.

    Layers are ``conv1``, ``bn1``, ``layer1_0/conv1``, … and ``linear``.

    Attributes:
      num_classes: number of outputs.
      blocks: number of blocks of each stage.
      width: channels of the first stage, doubled at each further one.
      variant: padding, downsampling, BatchNorm axis and type of the computation.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """

    num_classes: int = 10
    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16
    variant: Variant = Variant()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, of images (batch, h, w, channels)."""
        v = dataclasses.replace(self.variant, kernel_init=nn.initializers.he_normal())
        x = v.conv("conv1", self.width, 3)(images.astype(v.dtype))
        x = nn.relu(v.norm("bn1")(x, train))
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                x = CifarBlock(
                    planes=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    index=stage - 1,
                    variant=v,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return torch_dense("linear", self.num_classes, x, kernel_init=v.kernel_init)
