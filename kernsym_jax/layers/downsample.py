"""Downsampling: the five methods of a strided layer behind one module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers.blur import blur_pool
from kernsym_jax.layers.padding import module_path
from kernsym_jax.layers.polyphase import PhaseLogits, aps_weights, lps_weights, mix, polyphase
from kernsym_jax.layers.sbpool import Position, corner, random_position

DOWNSAMPLINGS = ("stride", "blur", "sbpool", "aps", "lps")


def check_downsample(downsample: str, layer: str) -> None:
    """Raises a ``ValueError`` naming ``layer`` unless ``downsample`` is in ``DOWNSAMPLINGS``."""
    if downsample not in DOWNSAMPLINGS:
        raise ValueError(
            f"{layer}: unknown downsample {downsample!r}; wanted one of {DOWNSAMPLINGS}"
        )


class Downsample(nn.Module):
    """Downsamples the branches of a network that meet at one strided layer.

    ``stride`` and ``sbpool`` step inside the convolution or pooling. ``blur``, ``aps`` and ``lps``
    step later, after the normalisation and the activation that follow it::

        down = Downsample("aps", stride=2, index=0, name="down1")
        position = down.position(train)
        y = Conv(64, 3, stride=down.inside, name="conv1")(x, position)
        y, phases = down(nn.relu(y), train)
        shortcut, _ = down(x, train, phases)
        shortcut = Conv(64, 1, stride=down.inside, name="conv2")(shortcut, position)

    Training draws from the rng stream ``downsample``: one SBPool position per forward call, and LPS
    noise per sample.

    Attributes:
      method: one of ``DOWNSAMPLINGS``.
      stride: step on both axes; with 1 the module returns its input.
      index: number of the strided layer in forward order, from 0; it selects SBPool's corner in
        evaluation.
      blur_size: taps of the binomial filter of ``blur``, 1 to 7.
      dtype: type of the computation.

    Reference: SBPool, Alsallakh et al., ICLR 2023; BlurPool, Zhang, ICML 2019; APS, Chaman &
    Dokmanic, CVPR 2021; LPS, Rojas-Gomez et al., NeurIPS 2022.
    """

    method: str = "stride"
    stride: int = 2
    index: int = 0
    blur_size: int = 4
    dtype: Any = jnp.float32

    @property
    def inside(self) -> int:
        """Returns the stride of the convolution or pooling itself."""
        check_downsample(self.method, module_path(self))
        return self.stride if self.method in ("stride", "sbpool") else 1

    def position(self, train: bool = False) -> Position | None:
        """Returns SBPool's window position: random in training, a corner in evaluation."""
        if self.method != "sbpool" or self.stride == 1:
            return None
        return random_position(self.make_rng("downsample")) if train else corner(self.index)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, phases: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Subsamples the map, unless the layer before has done so.

        Args:
          x: map (batch, height, width, channels).
          train: whether LPS samples a mixture of components instead of taking the best one.
          phases: weights that another branch has returned; ``None`` to choose them from ``x``.

        Returns:
          The map, and the weights (batch, stride**2) of its polyphase components for the other
          branches; ``None`` for methods without such weights.

        Raises:
          ValueError: if the method is unknown, or the map too small for the blur.
        """
        check_downsample(self.method, module_path(self))
        if self.stride == 1 or self.method in ("stride", "sbpool"):
            return x, None
        if self.method == "blur":
            return blur_pool(x, self.blur_size, self.stride, layer=module_path(self)), None
        components = polyphase(x, self.stride)
        if phases is None and self.method == "aps":
            phases = aps_weights(components)
        elif phases is None:
            logits = PhaseLogits(dtype=self.dtype, name="logits")(components)
            phases = lps_weights(logits, self.make_rng("downsample") if train else None)
        return mix(components, phases), phases
