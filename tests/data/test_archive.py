"""Archives of class folders hold what the folders hold, and nothing of them touches the disk."""

import io
import tarfile

import numpy as np
import pytest

from kernsym_jax import data


def pack(folder, path, mode="w", prefix=""):
    with tarfile.open(path, mode) as archive:
        for split in ("train", "val"):
            archive.add(folder / split, f"{prefix}{split}")
    return path


def add(path, name, content=b"", kind=tarfile.REGTYPE):
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, len(content), "train"
        archive.addfile(member, io.BytesIO(content))


def same(left, right):
    np.testing.assert_array_equal(left.images, right.images)
    np.testing.assert_array_equal(left.labels, right.labels)
    assert left.classes == right.classes


@pytest.mark.parametrize(
    ("name", "mode", "prefix"),
    [
        ("set.tar", "w", ""),
        ("set.tar.gz", "w:gz", ""),
        ("set.tar.xz", "w:xz", "./"),
        ("set.tgz", "w:gz", "some_set/"),
        ("set", "w", "./some_set/"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_is_read_as_its_folder_is(
    image_folder, tmp_path_factory, name, mode, prefix, split
):
    (image_folder / "train" / ".DS_Store").write_bytes(b"of a file manager")
    (image_folder / "train" / "cat" / "._0.png").write_bytes(b"of a file manager")
    path = pack(image_folder, tmp_path_factory.mktemp("packed") / name, mode, prefix)
    same(data.load(f"folder:{path}", split), data.load(f"folder:{image_folder}", split))
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_an_archive_of_class_folders_alone_is_a_test_split(image_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "val.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(image_folder / "val", "images")
    same(data.load(f"folder:{path}", "test"), data.load(f"folder:{image_folder}", "test"))
    with pytest.raises(FileNotFoundError, match="no folder train"):
        data.load(f"folder:{path}", "train")


def test_the_jpeg_copy_of_cifar_10_has_a_thousand_test_images_of_each_class(shared):
    test = data.load(f"folder:{shared / 'data' / 'cifar10_jpeg.tar.gz'}", "test")
    assert test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[3] == "cat"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: add(p, "../outside.png", b"x"), r"'\.\./outside\.png' leads out of the archive"),
        (lambda p: add(p, "/etc/outside.png", b"x"), r"leads out of the archive"),
        (lambda p: add(p, "train/../../x.png", b"x"), r"leads out of the archive"),
        (lambda p: add(p, "train/cat/link.png", kind=tarfile.SYMTYPE), "link.png' is no plain"),
        (lambda p: add(p, "train/cat/link.png", kind=tarfile.LNKTYPE), "link.png' is no plain"),
        (lambda p: add(p, "train/cat/pipe.png", kind=tarfile.FIFOTYPE), "pipe.png' is no plain"),
        (lambda p: add(p, "val/cow", kind=tarfile.DIRTYPE), "differ in the classes cow"),
        (lambda p: add(p, "train/cow/0.png", b"x"), "differ in the classes cow"),
        (lambda p: add(p, "train/cat/9.png", b"x"), "9.png: not a readable image"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "not a readable tar file"),
        (lambda p: p.write_bytes(b"PK\3\4 something else"), "not a readable tar file"),
        (lambda p: p.write_bytes(b""), "not a readable tar file"),
    ],
)
def test_damaged_archives_are_refused_by_name(image_folder, tmp_path_factory, damage, says):
    path = pack(image_folder, tmp_path_factory.mktemp("packed") / "set.tar")
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        data.load(f"folder:{path}", "train")
    assert str(path) in str(caught.value)


def test_a_cut_off_compressed_archive_is_refused_by_name(image_folder, tmp_path_factory):
    path = pack(image_folder, tmp_path_factory.mktemp("packed") / "set.tar.gz", "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"set\.tar\.gz: not a readable tar file"):
        data.load(f"folder:{path}", "train")
