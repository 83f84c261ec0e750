import dataclasses

import numpy as np
import pytest

from kernsym_jax.studies import Contrast, load_study

CONFIGS = (
    "architecture", "consistency", "datasets", "downsampling", "emergence", "inductive_bias",
    "population", "remedies", "segmentation",
)  # fmt: skip
SIZES = ("smoke", "cpu", "gpu", "full")


@pytest.fixture
def study(micro_study):
    return load_study(micro_study, "smoke")


def test_a_run_has_the_bases_config_but_for_variant_and_seed(study):
    config = study.config("odd", 1)
    assert (config.data.image_size, config.seed, config.model.width) == (9, 1, 4)
    assert study.config("even", 0).data.image_size == 0
    assert study.base.seed == 0


def test_an_unknown_key_of_a_variant_is_refused(study):
    wrong = dataclasses.replace(study, variants={**study.variants, "even": {"data.size": 9}})
    with pytest.raises(ValueError, match=r"unknown config key config.data.size"):
        wrong.config("even", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"terms": ((1.0, "big", "E_strided"),)}, "unknown variant 'big'; known are even, odd"),
        ({"terms": ((1.0, "odd", "F"),)}, "unknown measure 'F'"),
        ({"claim": "E13"}, "unknown claim 'E13'"),
        ({"expected": "more"}, "unknown direction 'more'"),
        ({"smallest": 0.0}, "above 0, got 0"),
    ],
)
def test_a_test_of_what_the_study_has_not_is_refused(study, change, says):
    wrong = dataclasses.replace(study.contrasts["odd_part"], **change)
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(study, contrasts={"odd_part": wrong})


def test_a_claim_without_a_test_and_repeated_seeds_are_refused(study):
    with pytest.raises(ValueError, match="claim without a test 'E4'"):
        dataclasses.replace(study, contrasts={})
    with pytest.raises(ValueError, match="seeds"):
        dataclasses.replace(study, seeds=(1, 1))
    with pytest.raises(ValueError, match="letters"):
        dataclasses.replace(study, variants={"../odd": {}})


def test_what_is_no_study_is_refused_in_one_line(tmp_path, micro_study):
    with pytest.raises(FileNotFoundError, match=r"none.py: no such file"):
        load_study(tmp_path / "none.py", "smoke")
    with pytest.raises(ValueError, match="unknown size 'huge'; the study has smoke, cpu"):
        load_study(micro_study, "huge")
    path = tmp_path / "wrong.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"wrong\.py has no get_study\(size\)"):
        load_study(path, "smoke")
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        load_study(path, "smoke")


def test_other_data_take_the_place_of_the_bases_own(micro_study):
    study = load_study(micro_study, "smoke", "noise:size=8")
    assert study.config("even", 0).data.source == "noise:size=8"
    assert study.data == "noise:size=8"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_study_resolves_in_every_size_with_three_cases_at_least(repository, name, size):
    study = load_study(repository / f"configs/studies/{name}.py", size)
    assert (study.name, study.size) == (name, size)
    assert len(study.seeds if study.contrasts else study.variants) >= 3
    assert len(study.primaries) == len(study.claims)
    for variant in study.variants:
        study.config(variant, study.seeds[-1])
    assert study.plan()["tests"].keys() == study.tests.keys()


@pytest.mark.parametrize("size", SIZES)
def test_downsampling_compares_uneven_with_even_and_mirrored_layers(repository, size):
    from kernsym_jax import geometry, models

    study = load_study(repository / "configs/studies/downsampling.py", size)
    for variant in study.variants:
        if size == "cpu" and not variant.endswith(("16", "17")):
            continue  # larger sizes are secondary
        config = study.config(variant, 0)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.items()}
        fields["num_classes"] = 10
        rows = geometry.audit_module(models.create(**fields), config.data.image_size)
        strided = [row for row in rows if max(row.stride) > 1 and max(row.kernel) > 1]
        assert len(strided) == (2 if variant.startswith("resnet20") else 3)
        # Of windows too far up and left, as of zero padding at an even size, too far down and
        # right, as of its mirror image, and in the middle.
        sign = 0 if variant.endswith(("17", "33")) else 1 if "same" in variant else -1
        assert {np.sign(drift) for row in strided for drift in row.centre_drift} == {sign}


def test_a_contrast_tells_its_terms_in_the_plan(study):
    plan = study.plan()["tests"]["odd_part"]
    assert plan["terms"] == [[1.0, "even", "E_strided"], [-1.0, "odd", "E_strided"]]
    assert isinstance(study.contrasts["odd_part"], Contrast)
