"""One small network that every reader is shown, by its values.

Values are small multiples of 1/64, so that every format down to bfloat16 holds them exactly.
"""

import numpy as np


def values(name, shape):
    """float32 values of an array, from its name and shape alone."""
    numbers = np.arange(np.prod(shape)) * 7919 + 31 * sum(name.encode())
    return ((numbers % 251 - 125) / 64).astype(np.float32).reshape(shape)


# In forward order, which is also the natural order of the names.
SHAPES = {
    "layer1": (3, 3, 3, 4),
    "layer2": (3, 3, 1, 4),
    "layer3": (1, 1, 4, 4),
    "layer10": (5, 5, 4, 2),
}
STRIDES = {"layer1": 2, "layer2": 1, "layer3": 1, "layer10": 1}
PADS = {"layer1": 1, "layer2": 1, "layer3": 0, "layer10": 2}
KERNELS = {name: values(name, shape) for name, shape in SHAPES.items()}
DENSE, BIAS = values("head", (2, 5)), values("layer10", (2,))
NORM = {
    "scale": values("scale", (4,)),
    "bias": values("offset", (4,)),
    "mean": values("mean", (4,)),
    "var": np.abs(values("var", (4,))) + 1,
}
SPATIAL = [name for name, shape in SHAPES.items() if shape[:2] != (1, 1)]
FOLDED = KERNELS["layer1"] * (NORM["scale"] / np.sqrt(NORM["var"] + np.float32(1e-5)))


def flax_variables():
    """The network as Linen has it."""
    params = {name: {"kernel": kernel} for name, kernel in KERNELS.items()}
    params["layer10"]["bias"] = BIAS
    params["layer1_bn"] = {"scale": NORM["scale"], "bias": NORM["bias"]}
    params["head"] = {"kernel": DENSE}
    stats = {"layer1_bn": {"mean": NORM["mean"], "var": NORM["var"]}}
    return {"params": params, "batch_stats": stats}


def state_dict(dtype=np.float32):
    """The network as PyTorch has it, in the order of its layers."""
    arrays = {}
    for name, kernel in KERNELS.items():
        arrays[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)).astype(dtype)
        if name == "layer1":
            leaves = ("weight", "bias", "running_mean", "running_var")
            for leaf, stored in zip(leaves, NORM.values(), strict=True):
                arrays[f"layer1_bn.{leaf}"] = stored.astype(dtype)
            arrays["layer1_bn.num_batches_tracked"] = np.array(3, np.int64)
    arrays["layer10.bias"] = BIAS.astype(dtype)
    arrays["head.weight"] = np.ascontiguousarray(DENSE.T).astype(dtype)
    return arrays
