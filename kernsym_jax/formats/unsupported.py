"""Tells what a file is that holds no weights we read, and what to do about it."""

import os
import pathlib
import re

from kernsym_jax.formats.arrays import open_regular

_HEAD = 1024

_DOWNLOAD = "download the file itself, by its raw link"
_UNPACK = "unpack it first"
_STARTS = {
    b"version https://git-lfs.github.com/spec": (
        "a Git LFS pointer in place of the file: fetch it with `git lfs pull`"
    ),
    b"\x1f\x8b": f"compressed by gzip: {_UNPACK} (gunzip, or tar -xzf)",
    b"BZh": f"compressed by bzip2: {_UNPACK}",
    b"\xfd7zXZ\0": f"compressed by xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd: {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive: {_UNPACK}",
    b"Rar!\x1a\x07": f"a RAR archive: {_UNPACK}",
    b"MATLAB 5.0 MAT-file": (
        "a MATLAB file (v5): save its arrays with numpy.savez(path, **scipy.io.loadmat(file))"
    ),
    b"MATLAB 7.3 MAT-file": (
        "a MATLAB file (v7.3, an HDF5 file): save its arrays as .npz with h5py and numpy.savez"
    ),
    b"GGUF": "GGUF, a format of llama.cpp: convert it to safetensors",
    b"lmgg": "GGML, a format of llama.cpp: convert it to safetensors",
    b"%PDF": "a PDF, not weights",
    b"\x89PNG\r\n\x1a\n": "a PNG image, not weights",
    b"\xff\xd8\xff": "a JPEG image, not weights",
    b"GIF8": "a GIF image, not weights",
    b"II*\0": "a TIFF image, not weights",
    b"MM\0*": "a TIFF image, not weights",
    b"\x7fELF": "a program, not weights",
    b"PAR1": "a Parquet table, not weights",
}
_SUFFIXES = {
    ".mlmodel": "Core ML: export the network to ONNX, or save its weights with coremltools",
    ".pb": "a TensorFlow graph: give the folder of its SavedModel, with variables/ in it",
    ".pdmodel": "a Paddle program: give its .pdparams, or convert it with paddle2onnx",
    ".caffemodel": "Caffe: convert it to ONNX",
    ".prototxt": "a Caffe network without weights: convert its .caffemodel to ONNX",
    ".engine": "a TensorRT engine: give the ONNX file that it was built from",
    ".trt": "a TensorRT engine: give the ONNX file that it was built from",
    ".cfg": "a configuration: give the .weights beside it",
    ".py": "a Python script, not weights",
    ".ipynb": "a notebook, not weights",
    ".yaml": "a configuration, not weights",
    ".yml": "a configuration, not weights",
    ".md": "text, not weights",
}
_PAGE = re.compile(rb"\s*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_SCRIPT = re.compile(rb"(#!.*python|(import|from) \w+|\"\"\"|def \w+\()")


def what_it_is(path: str | os.PathLike) -> str | None:
    """Returns a hint if a file is of a known kind that holds no weights we read, or None.

    Args:
      path: a file or a folder.
    """
    location = pathlib.Path(path)
    suffix = location.suffix.lower()
    if location.is_dir():
        is_core_ml = suffix == ".mlpackage" or (location / "Manifest.json").is_file()
        return _SUFFIXES[".mlmodel"] if is_core_ml else None
    with open_regular(location) as file:
        head = file.read(_HEAD)
    # An empty file is told by its reader, and a name says little about an archive.
    if not head or head.startswith((b"PK", b"\x89HDF")):
        return None
    return _hint(head) or _SUFFIXES.get(suffix)


def _hint(head: bytes) -> str | None:
    for start, hint in _STARTS.items():
        if head.startswith(start):
            return hint
    if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        return f"a web page saved in place of the file: {_DOWNLOAD}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK} (tar -xf)"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image, not weights"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "a BMP image, not weights"
    if _SCRIPT.match(head):
        return "a Python script, not weights"
    return None
