"""Every model against PyTorch's answers for the same weights (see make_fixtures.py)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_blocks import run_by_blocks
from flax.traverse_util import flatten_dict

from kernsym_jax.models.inception_v3 import AuxiliaryHead
from kernsym_jax.models.variant import Variant

_TORCH = json.loads(pathlib.Path(__file__).with_name("torch_logits.json").read_text())


def _label(case):
    training = " training" if case["train"] else ""
    return f"{case['model']} {case['size']}{training}"


def _relative_error(logits, wanted):
    wanted = np.asarray(wanted, np.float32)
    return np.linalg.norm(np.asarray(logits) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("case", [c for c in _TORCH["cases"] if not c["train"]], ids=_label)
def test_logits_equal_pytorchs_for_the_same_weights(case, prepared):
    model, variables, images = prepared(
        case["model"], case["batch"], case["size"], num_classes=_TORCH["classes"], **case["fields"]
    )
    # Only the residual networks have many equal blocks.
    many = case["model"].startswith(("resnet", "cifar"))
    apply = functools.partial(run_by_blocks, model.apply) if many else jax.jit(model.apply)
    logits = apply(variables, images)
    assert logits.dtype == jnp.float32
    assert _relative_error(logits, case["logits"]) < 1e-4


@pytest.mark.parametrize("case", [c for c in _TORCH["cases"] if c["train"]], ids=_label)
def test_a_training_pass_gives_pytorchs_logits_and_running_statistics(case, prepared):
    model, variables, images = prepared(
        case["model"], case["batch"], case["size"], num_classes=_TORCH["classes"], **case["fields"]
    )

    @jax.jit
    def forward(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = forward(variables, images)
    assert _relative_error(logits, case["logits"]) < 1e-4
    after = flatten_dict(updates["batch_stats"], sep="/")
    assert after.keys() == case["batch_stats_sums"].keys()
    for path, total in case["batch_stats_sums"].items():
        np.testing.assert_allclose(after[path].sum(), total, rtol=1e-4, atol=1e-4, err_msg=path)


def test_the_auxiliary_head_of_inception_equals_pytorchs(seeded, traced):
    shapes = traced("inception_v3", num_classes=_TORCH["classes"]).variables
    variables = {
        collection: seeded["variables"]({"AuxLogits": shapes[collection]["AuxLogits"]}, prefix)
        for collection, prefix in (("params", "params/"), ("batch_stats", "batch_stats/"))
    }
    head = AuxiliaryHead(_TORCH["classes"], Variant(bn_epsilon=1e-3))
    logits = head.apply(
        {collection: tree["AuxLogits"] for collection, tree in variables.items()},
        seeded["uniform"]("auxiliary map", (2, 17, 17, 768), 0.0, 1.0),
    )
    assert _relative_error(logits, _TORCH["auxiliary"]["logits"]) < 1e-4
