"""What a layer is called in an error message."""

import flax.linen as nn


def layer_name(module: nn.Module) -> str:
    """The module's path in its network, or its class where it stands alone."""
    path = module.path if module.scope is not None else ()
    return "/".join(path) or module.name or type(module).__name__
