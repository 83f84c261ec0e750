"""How a strided layer takes its step: five methods behind one module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernsym_jax.layers.blur import blur_pool
from kernsym_jax.layers.layer_name import layer_name
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
    """The step of one strided place of a network, and of every branch that runs beside it.

    ``stride`` and ``sbpool`` step in the convolution or pooling itself, ``blur``, ``aps`` and
    ``lps`` after it and after what follows it (normalisation, activation)::

        down = Downsample("aps", stride=2, index=0, name="down1")
        position = down.position(train)
        y = Conv(64, 3, stride=down.inside, name="conv1")(x, position)
        y, phases = down(nn.relu(y), train)
        shortcut, _ = down(x, train, phases)
        shortcut = Conv(64, 1, stride=down.inside, name="conv2")(shortcut, position)

    Training draws from the rng stream ``downsample``: SBPool's position once per forward call,
    LPS's noise per sample.

    Attributes:
      method: one of ``DOWNSAMPLINGS``.
      stride: the step on both axes; at 1 the module does nothing.
      index: the number of the strided place in forward order, from 0; it gives SBPool's corner in
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
        """The stride that the convolution or pooling itself takes."""
        check_downsample(self.method, layer_name(self))
        return self.stride if self.method in ("stride", "sbpool") else 1

    def position(self, train: bool = False) -> Position | None:
        """Where SBPool puts the windows of this call: drawn in training, else the corner."""
        if self.method != "sbpool" or self.stride == 1:
            return None
        return random_position(self.make_rng("downsample")) if train else corner(self.index)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, phases: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Takes the step that the layer itself did not take.

        Args:
          x: map (batch, height, width, channels).
          train: draw LPS's mixture instead of taking the best component.
          phases: the choice of the branch beside this one; ``None`` to choose here.

        Returns:
          The map, and the weights (batch, stride**2) of its polyphase components for the branches
          that share the choice; ``None`` where the method chooses none.

        Raises:
          ValueError: for an unknown method, or a map too small for the blur.
        """
        check_downsample(self.method, layer_name(self))
        if self.stride == 1 or self.method in ("stride", "sbpool"):
            return x, None
        if self.method == "blur":
            return blur_pool(x, self.blur_size, self.stride, layer=layer_name(self)), None
        components = polyphase(x, self.stride)
        if phases is None and self.method == "aps":
            phases = aps_weights(components)
        elif phases is None:
            logits = PhaseLogits(dtype=self.dtype, name="logits")(components)
            phases = lps_weights(logits, self.make_rng("downsample") if train else None)
        return mix(components, phases), phases
