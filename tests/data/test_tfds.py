"""Sets of TensorFlow Datasets, prepared and read without TensorFlow."""

import importlib.util
import io
import itertools
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from kernsym_jax import data

COUNTS = {"train": 12, "test": 5, "validation": 4}


def picture(split, index):
    shade = 40 * sorted(COUNTS).index(split)
    pixels = np.full((6, 8, 3), shade, np.uint8)
    pixels[:, index % 8] = 200 + index
    return pixels


def scene_mask(split, index):
    mask = np.ones((6, 8), np.uint8)
    mask[index % 6] = 3
    mask[:, len(split) % 8] = 2
    return mask


@pytest.fixture(scope="module")
def builders():
    """Sets of the test's own, the first of equal images."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        SHAPE = (6, 8, 3)

        def _info(self):
            features = {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(shape=self.SHAPE),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for index in range(COUNTS[split]):
                yield (
                    f"{split}{index}",
                    {
                        "file_name": f"{index}.png",
                        "image": self.encoded(split, index),
                        "label": self.label(split, index),
                    },
                )

        def encoded(self, split, index):
            file = io.BytesIO()
            Image.fromarray(self.image(split, index)).save(file, "PNG")
            return file.getvalue()

        def image(self, split, index):
            return picture(split, index)

        def label(self, split, index):
            return index % 3

    class KernsymStripes(Builder):
        """Images of one size, in three labelled splits."""

    class KernsymPhotos(Builder):
        """Images of any size, in a test split without labels."""

        SHAPE = (None, None, 3)

        def image(self, split, index):
            return np.repeat(picture(split, index), 2 + index, axis=index % 2)

        def label(self, split, index):
            return -1 if split == "test" else index % 3

    class KernsymBroken(Builder):
        """One image of the training split is none."""

        def encoded(self, split, index):
            return b"no image" if (split, index) == ("train", 4) else super().encoded(split, index)

    class KernsymScenes(Builder):
        """Images of any size with masks of the values 1, 2 and 3, as Oxford's pets have them."""

        def _info(self):
            features = {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _generate_examples(self, split):
            for key, example in super()._generate_examples(split):
                number = int(example["file_name"].split(".")[0])
                file = io.BytesIO()
                Image.fromarray(scene_mask(split, number)).save(file, "PNG")
                yield key, {**example, "segmentation_mask": file.getvalue()}

    class KernsymNamed(KernsymScenes):
        """Masks that know the names of their classes."""

        def _info(self):
            features = {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"]),
                "segmentation_mask": tfds.features.LabeledImage(
                    labels=["nothing", "pet", "other", "edge"], shape=(None, None, 1)
                ),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

    return KernsymStripes, KernsymPhotos, KernsymBroken, KernsymScenes, KernsymNamed


@pytest.fixture(scope="module")
def prepared(builders, tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(place))
        data.prepare("tfds:kernsym_stripes")
        data.prepare("tfds:kernsym_photos")
        data.prepare("tfds:kernsym_broken")
        data.prepare("tfds-masks:kernsym_scenes")
        data.prepare("tfds-masks:kernsym_named")
    return place


@pytest.fixture(autouse=True)
def data_dir(request, monkeypatch):
    if "prepared" in request.fixturenames:
        monkeypatch.setenv("TFDS_DATA_DIR", str(request.getfixturevalue("prepared")))


def test_a_prepared_set_is_read_with_its_labels_and_the_names_of_its_classes(prepared):
    for split in ("train", "test"):
        images = data.load("tfds:kernsym_stripes", split)
        assert images.classes == ("cat", "dog", "eel")
        # Records lie in an order of their own.
        numbers = [int(image.max()) - 200 for image in images.images]
        assert sorted(numbers) == list(range(COUNTS[split]))
        for number, image, label in zip(numbers, images.images, images.labels, strict=True):
            np.testing.assert_array_equal(image, picture(split, number))
            assert label == number % 3
    assert (prepared / "kernsym_stripes" / "1.2.0").is_dir()
    assert "tensorflow" not in sys.modules


def test_a_set_with_version_is_read_without_its_code(prepared):
    images = data.load("tfds:kernsym_stripes:1.2.0", "train")
    np.testing.assert_array_equal(images.images, data.load("tfds:kernsym_stripes", "train").images)


def test_a_test_split_without_labels_gives_way_to_the_validation_split(prepared):
    images = data.load("tfds:kernsym_photos", "test", image_size=6)
    assert len(images) == COUNTS["validation"]
    assert sorted(images.labels) == [0, 0, 1, 2]


def test_images_of_any_size_are_cropped_while_they_are_streamed(opened, prepared):
    dataset = opened(source="tfds:kernsym_photos", streaming=True, crop_size=5)
    assert dataset.image_shape == (5, 5, 3)
    assert (dataset.train_size, dataset.test_size) == (12, 4)
    stream = dataset.train.start(0)
    batches = [np.asarray(batch["image"]) for batch in itertools.islice(stream, 3)]
    stream.close()
    assert [batch.shape for batch in batches] == [(4, 5, 5, 3)] * 3
    (batch,) = dataset.evaluation()
    assert np.asarray(batch["weight"]).tolist() == [1] * 4


def test_a_record_that_is_no_image_is_fatal_by_name_or_skipped(prepared):
    with pytest.raises(ValueError, match=r"tfds:kernsym_broken, train record \d+: not a readable"):
        data.load("tfds:kernsym_broken", "train")
    images = data.load("tfds:kernsym_broken", "train", on_broken="skip")
    assert sorted(int(image.max()) - 200 for image in images.images) == [
        number for number in range(12) if number != 4
    ]


def test_masks_of_a_set_stand_in_place_of_its_class_labels(prepared):
    coding = data.MaskCoding(void=(3,), values=(2, 1))
    for split in ("train", "test"):
        found = data.load("tfds-masks:kernsym_scenes", split, coding=coding)
        assert found.classes == ("2", "1")
        numbers = [int(image.max()) - 200 for image in found.images]
        assert sorted(numbers) == list(range(COUNTS[split]))
        codes = np.array([0, 1, 0, data.VOID], np.uint8)
        for number, mask in zip(numbers, found.labels, strict=True):
            np.testing.assert_array_equal(mask, codes[scene_mask(split, number)])
    assert data.load("tfds:kernsym_scenes", "train").labels.ndim == 1
    assert "tensorflow" not in sys.modules


def test_masks_have_the_names_that_the_set_gives_its_classes_or_their_values(prepared):
    named = data.load("tfds-masks:kernsym_named", "test")
    assert named.classes == ("nothing", "pet", "other", "edge")
    plain = data.load("tfds-masks:kernsym_scenes", "test")
    assert plain.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(named.labels, plain.labels)
    for coding, classes in (
        (data.MaskCoding(void=(0,)), ("pet", "other", "edge")),
        (data.MaskCoding(void=(0,), values=(3, 1, 2)), ("edge", "pet", "other")),
        (data.MaskCoding(void=(0,), values=(3, 1, 2), classes=("e", "p", "o")), ("e", "p", "o")),
    ):
        found = data.load("tfds-masks:kernsym_named", "test", coding=coding)
        assert found.classes == classes
        rim = found.classes.index(classes[0])
        wanted = 1 if classes[0] == "pet" else 3
        np.testing.assert_array_equal(found.labels == rim, plain.labels == wanted)


def test_masks_of_a_set_are_streamed(opened, prepared):
    dataset = opened(source="tfds-masks:kernsym_scenes", streaming=True, mask_values=(1, 2, 3))
    stream = dataset.train.start(0)
    batch = next(stream)
    stream.close()
    assert dataset.masks
    for image, mask in zip(np.asarray(batch["image"]), np.asarray(batch["label"]), strict=True):
        np.testing.assert_array_equal(mask + 1, scene_mask("train", int(image.max()) - 200))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("tfds-masks:kernsym_stripes", "wanted one mask of one channel per example, got none"),
        ("tfds-masks:kernsym_strips", "unknown to TFDS"),
        (
            "tfds-masks:kernsym_scenes",
            r"the mask of tfds:kernsym_scenes, train record \d+: the value 3 at row \d",
        ),
    ],
)
def test_masks_that_do_not_fit_are_told_of_in_one_line(prepared, source, says):
    coding = data.MaskCoding(values=(1, 2))
    with pytest.raises(ValueError, match=says) as caught:
        data.load(source, "train", coding=coding)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_records_is_named(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "copy")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
    (records,) = (tmp_path / "copy" / "kernsym_stripes").rglob("*train.array_record*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    records.write_bytes(content)
    with pytest.raises(ValueError, match=r"tfds:kernsym_stripes, train record \d+: damaged"):
        data.load("tfds:kernsym_stripes", "train")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("tfds:kernsym_strips", "unknown to TFDS.*close to it are kernsym_stripes"),
        ("tfds:kernsym_stripes:3.0.0", "cannot be loaded at version|not prepared under that name"),
        ("tfds:kernsym_stripes/x", "tfds:kernsym_stripes/x: "),
        ("tfds:../up", r"tfds:\.\./up: Parsing builder name"),
        ("tfds:", "tfds:: Parsing builder name"),
        ("tfds:imdb_reviews", "is not prepared in .*TFDS_DATA_DIR.*--prepare"),
    ],
)
def test_sets_that_cannot_be_opened_are_told_of_in_one_line(prepared, source, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        data.load(source, "train")
    assert "\n" not in str(caught.value)


def test_preparing_a_set_of_tfds_itself_says_that_it_needs_tensorflow(tmp_path, monkeypatch):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs TensorFlow.*pip install 'kernsym-jax\[tf\]'"):
        data.prepare("tfds:mnist")
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_prepared_is_not_prepared_again(prepared):
    before = {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    data.prepare("tfds:kernsym_stripes")
    assert {file: file.stat().st_mtime_ns for file in prepared.rglob("*")} == before


def test_preparing_other_sources_finds_out_whether_they_are_there(image_folder):
    data.prepare("digits")
    data.prepare(f"folder:{image_folder}")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.prepare(f"folder:{image_folder}/nowhere")
    (image_folder / "set.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"set\.tar: not a readable tar file"):
        data.prepare(f"folder:{image_folder}/set.tar")
