"""Archives of class folders hold what the folders hold, and nothing of them touches the disk."""

import bz2
import gzip
import io
import lzma
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


MIB = 2**20


def header(kind, size, name="x"):
    """A header as it lies in a tar file, of any kind and claiming any size."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[156:157], block[124:136] = kind, b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % 512)


def member(name, content):
    return header(b"0", len(content), name) + padded(content)


@pytest.fixture
def two_images(black_png):
    """The members of a set of one image per split."""
    image = black_png(2, 3)
    return member("train/a/1.png", image) + member("test/a/1.png", image)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (member(".", b"x"), r"the member '\.' is a file without a name"),
        (member("./", b"x"), r"the member '\./' is a file without a name"),
        (header(b"x", 256 * MIB) + bytes(4 * MIB), "header of the member 'x' has 268435456 bytes"),
        (header(b"X", 256 * MIB) + bytes(4 * MIB), "header of the member 'x' has 268435456 bytes"),
        (header(b"g", 256 * MIB) + bytes(4 * MIB), "header of the member 'x' has 268435456 bytes"),
        (header(b"L", 256 * MIB) + bytes(4 * MIB), "header of the member 'x' has 268435456 bytes"),
        (header(b"K", 256 * MIB) + bytes(4 * MIB), "header of the member 'x' has 268435456 bytes"),
        (header(b"L", 9000) + padded(b"n" * 9000) + member("x", b""), "a name of 9000 characters"),
        (header(b"L", 9000) + padded(b"n/" * 4500) + member("x", b""), "a name of 9000 characters"),
        (header(b"L", 12) + padded(b"../../escape") + member("x", b""), "leads out of the archive"),
        (header(b"x", 16) + padded(b"16 path=../esca\n") + member("x", b""), "leads out of the"),
        (
            header(b"x", 20) + padded(b"20 size=99999999999\n") + member("x", b""),
            "end of data|'x' makes it grow",
        ),
        (header(b"x", 11) + padded(b"11 size=-4\n") + member("x", b""), "has the size -4"),
        (
            header(b"x", 9) + padded(b"99 path=x") + member("x", b""),
            "header of the member .* damaged",
        ),
        (
            header(b"x", 9) + padded(b"-1 path=x") + member("x", b""),
            "header of the member .* damaged",
        ),
        (header(b"g", 11) + padded(b"11 path=ab\n"), "gives all members one name or size"),
        (header(b"x", 22) + padded(b"22 GNU.sparse.major=1\n") + member("x", b""), "no plain file"),
        (header(b"S", 0), "is no plain file or folder"),
        (header(b"1", 0), "is no plain file or folder"),
        (header(b"2", 0), "is no plain file or folder"),
        (header(b"3", 0), "is no plain file or folder"),
        (header(b"4", 0), "is no plain file or folder"),
        (header(b"6", 0), "is no plain file or folder"),
        (member("train/a", b"x"), "is a file and a folder"),
        (member("train/a/1.png/2.png", b"x"), "is a file and a folder"),
        (b"no header" * 200, "not a readable tar file"),
    ],
)
def test_hostile_members_are_refused_in_one_line_with_bounded_memory(
    two_images, tmp_path, bounded, blocks, says, compressed
):
    path = tmp_path / "set.tar"
    content = two_images + blocks + bytes(1024)
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    for split in ("train", "test"):
        with (
            bounded(64 * MIB),
            pytest.raises((ValueError, FileNotFoundError), match=says) as caught,
        ):
            data.load(f"folder:{path}", split)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 300 + len(str(path))
        assert "\n" not in str(caught.value)


def test_a_chain_of_headers_is_read_one_by_one(two_images, tmp_path, bounded):
    path = tmp_path / "set.tar"
    chain = (header(b"x", 12) + padded(b"12 path=abc\n")) * 5000
    path.write_bytes(chain + member("x", b"") + two_images + bytes(1024))
    with bounded(64 * MIB):
        assert len(data.load(f"folder:{path}", "train")) == 1


@pytest.mark.parametrize(
    ("opener", "fast", "on_broken"),
    [
        (gzip.open, {"compresslevel": 1}, "fail"),
        (gzip.open, {"compresslevel": 1}, "skip"),
        (bz2.open, {"compresslevel": 1}, "skip"),
        (lzma.open, {"preset": 0}, "skip"),
    ],
)
def test_a_compressed_archive_that_grows_without_end_is_refused_by_name(
    two_images, tmp_path, bounded, opener, fast, on_broken
):
    path = tmp_path / "set.tar.gz"
    with opener(path, "wb", **fast) as file:
        file.write(two_images + header(b"0", 250 * MIB, "train/a/zeros_1.png"))
        for _ in range(250):
            file.write(bytes(MIB))
        file.write(header(b"0", 250 * MIB, "train/a/zeros_2.png"))
    with bounded(600 * MIB), pytest.raises(ValueError, match=r"zeros_2\.png' makes it grow to"):
        data.load(f"folder:{path}", "train", on_broken=on_broken)


def test_members_without_content_are_refused_when_there_are_too_many(tmp_path, bounded):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(gzip.compress(member("train/a/1.png", b"") * 40_000))
    with bounded(64 * MIB), pytest.raises(ValueError, match=r"more than \d+ members in \d+ bytes"):
        data.load(f"folder:{path}", "train")


@pytest.mark.parametrize("place", ["archive", "folder"])
def test_a_file_larger_than_any_image_is_broken_and_not_read(
    two_images, black_png, tmp_path, bounded, place, caplog
):
    size = 300 * MIB
    if place == "archive":
        path = tmp_path / "set.tar"
        with path.open("wb") as file:
            file.write(two_images + header(b"0", size, "train/a/9.png"))
            file.truncate(file.tell() + size)
    else:
        path = tmp_path
        for split in ("train", "test"):
            (path / split / "a").mkdir(parents=True)
            (path / split / "a" / "1.png").write_bytes(black_png(2, 3))
        with (path / "train" / "a" / "9.png").open("wb") as file:
            file.truncate(size)
    with (
        bounded(64 * MIB),
        pytest.raises(ValueError, match=r"9\.png.* has|: 314572800 bytes, more"),
    ):
        data.load(f"folder:{path}", "train")
    with bounded(64 * MIB):
        assert len(data.load(f"folder:{path}", "train", on_broken="skip")) == 1
    assert "skipped 1 of 2 files" in caplog.text


def test_names_that_no_terminal_can_show_are_read(two_images, tmp_path):
    path = tmp_path / "set.tar"
    odd = member("train/a/1.png", b"").replace(b"1.png", b"\xff\x1b[2J")
    block = bytearray(odd[:512])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(two_images + bytes(block))
    assert len(data.load(f"folder:{path}", "train", on_broken="skip")) == 1


@pytest.mark.parametrize("blocks", [member(".", b"x"), header(b"x", 256 * MIB)])
def test_a_binary_ends_with_one_line_and_status_2(two_images, tmp_path, run_binary, blocks):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(gzip.compress(two_images + blocks + bytes(1024)))
    status, output, errors = run_binary(
        "evaluate",
        "--model=small_cnn",
        f"--weights={tmp_path}/none.npz",
        f"--data=folder:{path}",
        "--mean=.5",
        "--std=.2",
    )
    assert (status, output) == (2, "")
    assert errors.startswith(f"kernsym-evaluate: {path}: ")
    assert errors.count("\n") == 1
