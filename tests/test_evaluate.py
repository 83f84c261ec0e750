"""The evaluate binary as a user meets it."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from kernsym_jax import models, training


@pytest.fixture
def run(run_binary, monkeypatch):
    """Runs the binary in this process: (exit status, standard output, standard error)."""
    monkeypatch.setenv("KERNSYM_JAX_CACHE", "")
    return functools.partial(run_binary, "evaluate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory of 8 steps on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    config = training.default()
    config.batch_size, config.epochs, config.devices = 64, 8 / 22, 1
    config.model.update({"width": 4, "depth": 2, "strided": (2,)})
    return workdir, training.train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Weights of a `small_cnn` of two classes under the names of our models, and images."""
    folder = tmp_path_factory.mktemp("foreign")
    model = models.create("small_cnn", num_classes=2)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    random = np.random.default_rng(0)
    arrays = {
        "/".join(key.key for key in keys): random.uniform(-0.2, 1, leaf.shape).astype(np.float32)
        for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    arrays = {name: abs(a) if name.endswith("/var") else a for name, a in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / "net.safetensors")
    for split in ("train", "test"):
        for name in ("cat", "[red]dog"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(6):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def arguments(folder, **changes):
    given = {
        "model": "small_cnn", "weights": folder / "net.safetensors",
        "data": f"folder:{folder}/images", "mean": ".485,.456,.406", "std": ".229,.224,.225",
        "shift": 1, "shift_mode": "zero",
    } | changes  # fmt: skip
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_a_run_directory_gets_its_figures(run, trained):
    workdir, summary = trained
    status, out, _ = run(f"--workdir={workdir}", "--shift=2", "--shift_mode=circular")
    found = json.loads((workdir / "consistency.json").read_text())
    assert status == 0
    assert found["accuracy"]["value"] == pytest.approx(summary["eval_accuracy"], abs=1e-6)
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["images"] == 360
    shifts = found["shift_consistency"]
    assert (shifts["settings"]["mode"], shifts["map"]["dx"]) == ("circular", [-2, -1, 0, 1, 2])
    agreement = np.array(shifts["map"]["agreement"])
    assert shifts["value"] == pytest.approx(agreement.mean())
    assert agreement[2, 2] == 1
    assert len(found["flip_consistency"]) == 8
    assert sum(figures["images"] for figures in found["classes"].values()) == 360
    assert f"{100 * shifts['value']:.2f}" in out
    assert "antitranspose" in out
    assert (workdir / "consistency.svg").read_text().startswith("<?xml")


def test_foreign_weights_on_a_folder_of_images(run, foreign, tmp_path):
    out_file = tmp_path / "new" / "found.json"
    status, out, _ = run(*arguments(foreign), f"--out={out_file}", "--batch_size=5")
    found = json.loads(out_file.read_text())
    assert status == 0
    assert (found["images"], list(found["classes"])) == (12, ["[red]dog", "cat"])
    assert "[red]dog" in out
    assert found["settings"]["mean"] == [0.485, 0.456, 0.406]
    assert out_file.with_suffix(".svg").is_file()
    # The same images as class folders without splits.
    again = tmp_path / "again.json"
    bare = arguments(foreign, data=f"folder:{foreign}/images/test")
    assert run(*bare, f"--out={again}", "--batch_size=5")[0] == 0
    assert json.loads(again.read_text())["classes"] == found["classes"]


def test_crops_come_from_images_that_are_larger_than_the_input(run, foreign, tmp_path):
    out = tmp_path / "a.json"
    changes = {"shift_mode": "crop", "shift": "-2,1", "input_size": 6, "shift_draws": 2}
    assert run(*arguments(foreign, **changes, limit=4), f"--out={out}")[0] == 0
    found = json.loads(out.read_text())
    assert (found["settings"]["image_size"], found["settings"]["network_input"]) == (
        [10, 10],
        [6, 6],
    )
    assert found["images"] == 4
    assert [figures["images"] for figures in found["classes"].values()] == [2, 2]
    compared = np.array(found["shift_consistency"]["map"]["compared"])
    assert (compared.shape, compared.sum()) == ((7, 7), 8)


def test_without_shifts_there_is_no_map(run, foreign, tmp_path):
    out = tmp_path / "a.json"
    assert run(*arguments(foreign, shift=0), f"--out={out}")[0] == 0
    assert "shift_consistency" not in json.loads(out.read_text())
    assert not out.with_suffix(".svg").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"weights": None, "std": None},
            "give --workdir, or for foreign weights also --weights, --std",
        ),
        ({"shift": 8}, "shifts of up to 8 pixels leave nothing of 8×8 images"),
        ({"shift": 4, "shift_mode": "crop"}, "no window fits in 8×8 images"),
        ({"shift": "3;4"}, "got '3;4'"),
        ({"shift_mode": "wrap"}, "one of circular, zero, crop, got 'wrap'"),
        ({"model": "cifar_resnet20"}, "net.safetensors does not fit CifarResNet"),
        ({"model": "resnet19"}, "unknown model 'resnet19'"),
        ({"num_classes": 3}, "Dense_0|linear|head|classifier|fc"),
        ({"num_classes": 1}, "images of 2 classes for a network of 1"),
        ({"weights": "none.th"}, "none.th"),
        ({"data": "folder:none"}, "none: no such folder"),
        ({"mean": ".5", "std": ".5"}, "channels|\\(3, 3, 1"),
        ({"mean": "a,b,c"}, "could not convert string to float"),
        ({"std": "0,1,1"}, "std above 0"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_input_is_one_line_with_status_two(run, foreign, tmp_path, monkeypatch, changes, says):
    import re

    monkeypatch.chdir(tmp_path)
    status, out, errors = run(*arguments(foreign, **changes))
    assert (status, out) == (2, "")
    assert re.search(says, errors)
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_empty_split_is_told(run, foreign, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
    status, _, errors = run(*arguments(foreign, data=f"folder:{tmp_path}"))
    assert (status, errors.count("\n")) == (2, 1)
    assert "no images" in errors


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--workdir={t}"], "no config.json there"),
        (["--workdir={t}/b"], "config.json: not the config of a run"),
        (["--workdir={t}", "--model=small_cnn"], "--model goes with --weights, not with --workdir"),
        (["{t}"], "a run directory is --workdir="),
    ],
)
def test_what_is_no_run_directory_is_told(run, tmp_path, given, says):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"model": {}, "data": {"source": "digits"}}')
    status, _, errors = run(*(argument.format(t=tmp_path) for argument in given))
    assert (status, errors.count("\n")) == (2, 1)
    assert says in errors


def test_a_trained_resnet_knows_left_from_right_less_than_up_from_down(run, shared, tmp_path):
    given = {
        "model": "cifar_resnet20", "weights": shared / "weights" / "cifar_resnet20.th",
        "data": f"folder:{shared}/data/cifar10_jpeg.tar.gz", "shift": 0, "limit": 100,
    }  # fmt: skip
    assert run(*arguments(tmp_path, **given), f"--out={tmp_path}/a.json")[0] == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["accuracy"]["low"] < 0.81 < found["accuracy"]["high"]
    flips = {name: kinds["hard"] for name, kinds in found["flip_consistency"].items()}
    assert flips["fliplr"]["low"] > flips["flipud"]["high"] + 0.1


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run directory of a U-Net on images of 8×10 pixels with masks, and its folder of images."""
    folder, random = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(4):
            pixels = random.integers(0, 256, (8, 10, 3), np.uint8)
            mask = np.where(pixels[..., 0] > 120, 1, 0).astype(np.uint8)
            mask[number] = 9
            for kind, array in (("images", pixels), ("masks", mask)):
                place = folder / "set" / split / kind
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(place / f"{number}.png")
    shutil.copytree(folder / "set", folder / "empty")
    shutil.copytree(folder / "set", folder / "beyond")
    for file in folder.glob("empty/test/*/*.png"):
        file.unlink()
    Image.fromarray(np.full((8, 10), 2, np.uint8)).save(folder / "beyond/test/masks/3.png")
    config = training.default()
    config.batch_size, config.epochs, config.devices, config.ema_decay = 4, 4.0, 1, 0.9
    config.model.update({"name": "unet", "width": 4, "depth": 2})
    config.data.update({"source": f"masks:{folder}/set", "void": (9,), "classes": ("[b]", "$x$")})
    config.consistency.images = 0
    return folder, training.train_and_evaluate(config, folder / "run")


def test_a_run_on_masks_gets_its_figures_and_a_picture(run, masked, tmp_path):
    folder, summary = masked
    workdir = folder / "run"
    status, out, _ = run(f"--workdir={workdir}", "--shift=2", "--shift_mode=zero")
    found = json.loads((workdir / "consistency.json").read_text())
    assert status == 0
    for name in ("accuracy", "mean_iou"):
        assert found[name]["value"] == pytest.approx(summary[f"eval_{name}"], abs=1e-6)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
        assert f"{100 * found[name]['value']:.2f}" in out
    shifts = found["shift_consistency"]
    agreement = np.array(shifts["map"]["agreement"])
    assert agreement.shape == (5, 5)
    assert agreement[2, 2] == 1
    assert shifts["value"] == pytest.approx(agreement.mean(), abs=1e-6)
    assert list(found["flip_consistency"]) == ["e", "r180", "fliplr", "flipud"]
    assert list(found["classes"]) == ["[b]", "$x$"]
    assert sum(of["pixels"] for of in found["classes"].values()) == 4 * 7 * 10
    assert "[b]" in out
    assert (workdir / "consistency.svg").is_file()
    picture = workdir / "consistency.png"
    with Image.open(picture) as image:
        assert min(image.size) > 300
    assert picture.stat().st_size < 300_000
    again = tmp_path / "a.json"
    assert run(f"--workdir={workdir}", "--shift=2", "--shift_mode=zero", f"--out={again}")[0] == 0
    assert again.with_suffix(".png").read_bytes() == picture.read_bytes()


def test_the_moving_averages_of_a_run_are_evaluated_on_request(run, masked, trained, tmp_path):
    folder, summary = masked
    out = tmp_path / "a.json"
    given = [f"--workdir={folder / 'run'}", "--shift=0", f"--out={out}"]
    assert run(*given, "--ema")[0] == 0
    found = json.loads(out.read_text())
    assert found["mean_iou"]["value"] == pytest.approx(summary["eval_ema_mean_iou"], abs=1e-6)
    assert found["settings"]["ema"]
    assert not out.with_suffix(".png").exists()
    status, _, errors = run(f"--workdir={trained[0]}", "--ema", f"--out={tmp_path / 'b.json'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert "no moving averages" in errors


def test_masks_are_evaluated_at_another_size(run, masked, tmp_path):
    folder, _ = masked
    out = tmp_path / "a.json"
    crops = ("--input_size=12x16", "--shift=2", "--shift_mode=crop", "--shift_draws=2", "--limit=2")
    assert run(f"--workdir={folder / 'run'}", *crops, f"--out={out}")[0] == 0
    settings = json.loads(out.read_text())["settings"]
    assert (settings["image_size"], settings["network_input"]) == ([16, 20], [12, 16])
    # Weights of a network of another kind are told by the names of their layers.
    given = arguments(folder, weights=folder / "run", model="small_cnn", data=f"masks:{folder}/set")
    status, _, errors = run(*given, "--void=9", f"--out={tmp_path / 'b.json'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert "does not fit SmallCNN" in errors
    assert "params/bn1/bias (4,) instead of (32,)" in errors


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--shift=8"], "shifts of up to 8 pixels leave nothing of 8×10 images"),
        (["--shift=2", "--shift_mode=zero", "--shift_draws=1", "--input_size=4"], "in common"),
        (["--void=1"], "config.data.classes|neither"),
        (["--data=masks:none"], "none: no such"),
        (["--data=masks:{folder}/empty"], "empty: no files in its folder test/images"),
        (["--data=masks:{folder}/beyond"], "3.png: the value 2 .* neither of a class"),
        (["--data=digits", "--void=9"], "digits"),
    ],
)
def test_what_does_not_fit_masks_is_one_line(run, masked, tmp_path, changes, says):
    import re

    folder, _ = masked
    out = tmp_path / "a.json"
    changes = [change.format(folder=folder) for change in changes]
    status, _, errors = run(f"--workdir={folder / 'run'}", f"--out={out}", *changes)
    assert status == 2
    assert re.search(says, errors)
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_network_for_images_is_told_that_the_data_have_masks(run, masked, foreign, tmp_path):
    folder, _ = masked
    given = arguments(foreign, data=f"masks:{folder}/set")
    status, _, errors = run(*given, "--void=9", f"--out={tmp_path / 'a.json'}")
    assert (status, errors.count("\n")) == (2, 1)
    assert "for images with masks, got (8, 2)" in errors
    status, _, errors = run(*given, "--void=9", "--num_classes=1")
    assert (status, errors.count("\n")) == (2, 1)
    assert "of 2 classes for a network of 1" in errors
    assert not list(tmp_path.iterdir())
