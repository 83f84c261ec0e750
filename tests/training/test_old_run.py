"""A run of an earlier version, stopped after 22 of 88 steps, continues as that version would have.

The fixture is a run of 0.1.0, at the revision in its provenance.json; beside it lie the arrays with
which that version ended after 88 steps.
"""

import collections
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from kernsym_jax import training
from kernsym_jax.formats import orbax

STOPPED, END = 22, 88


def by_path(state):
    """The arrays of a state by their paths, with | between the parts of a path."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="|"): leaf for path, leaf in leaves}


def distance(one, other, names):
    """The Euclidean distance of the named arrays of two states."""
    return np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in names))


@pytest.mark.optimized
def test_a_run_of_an_earlier_version_resumes_bit_equal(request, tmp_path):
    fixtures = request.path.with_name("fixtures")
    workdir = tmp_path / "run"
    shutil.copytree(fixtures / "old_run", workdir)
    config = json.loads((workdir / "config.json").read_text())
    fresh, _ = tiny.parts(config).train(STOPPED)
    saved = tiny.saved_state(workdir, config)
    tiny.require_close(fresh, saved)
    assert int(saved.step) == STOPPED
    # Other processors and versions of XLA round differently, from the first steps on.
    same_rounding = all(
        np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(fresh), jax.tree.leaves(saved), strict=True)
    )

    assert training.train_and_evaluate(config, workdir)["step"] == END

    found = {
        "|".join(path): array.read()
        for path, array in orbax.read_arrays(workdir / "checkpoints" / str(END)).items()
    }
    with np.load(fixtures / "old_run_at_step_88.npz") as file:
        wanted = dict(file)
    assert found.keys() == wanted.keys()
    if same_rounding:
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name], name)
    # Rounding grows over 66 steps. Without the saved momentum, or with the images of another step,
    # the weights would be off by a fifth of the way that they have gone.
    names = [name for name in found if name.startswith("params|")]
    start = by_path(saved)
    assert distance(found, wanted, names) < 1e-4 * distance(start, wanted, names)
    lines = collections.Counter((line["split"], line["step"]) for line in tiny.lines(workdir))
    assert set(lines.values()) == {1}
    assert [step for split, step in lines if split == "train"] == [*range(5, END, 5), END]
    assert [step for split, step in lines if split == "eval"] == [22, 44, 66, 88]
