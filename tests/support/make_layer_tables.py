"""Writes kernsym_jax/models/layer_tables.json.gz: the layers of every network of the registry.

    python tests/support/make_layer_tables.py

`models.recognise` reads the tables, because tracing every network takes a minute.
"""

import dataclasses
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
from flax import traverse_util

from kernsym_jax import geometry, models

PLACE = pathlib.Path(models.__file__).with_name("layer_tables.json.gz")


def table(name):
    """The layers of a network, and the audit at its default input size."""
    model, size = models.create(name), models.default_input_size(name)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    layers = {}
    for path, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items():
        layer, _, kind = path.rpartition("/")
        if kind == "kernel" and leaf.ndim == 4:
            layers[layer] = list(leaf.shape)
        else:
            layers.setdefault(layer, None)
    rows = geometry.audit_module(model, size)
    return {"layers": layers, "rows": [dataclasses.asdict(row) for row in rows]}


def plain(value):
    """The value with the types that JSON gives back."""
    return json.loads(json.dumps(value))


def main():
    tables = {}
    for name in models.NAMES:
        tables[name] = table(name)
        print(name, len(tables[name]["layers"]), flush=True)
    text = json.dumps(tables, separators=(",", ":")).encode()
    PLACE.write_bytes(gzip.compress(text, mtime=0))
    print(f"{PLACE}: {PLACE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
