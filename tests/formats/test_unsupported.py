"""Files of other kinds end in a line that says what they are and what to do."""

import gzip

import pytest

from kernsym_jax import geometry, report, weights


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "net.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102\n",
            "Git LFS pointer .* `git lfs pull`",
        ),
        ("net.pth", b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("net.pth", b"<html lang='en'>", "a web page"),
        ("net.pth.gz", gzip.compress(b"weights", mtime=0), "compressed by gzip: unpack it first"),
        ("net.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(600), r"MATLAB file \(v5\)"),
        ("net.mat", b"MATLAB 7.3 MAT-file, Platform" + bytes(600), r"MATLAB file \(v7\.3"),
        ("net.gguf", b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
        ("net.mlmodel", b"\x08\x05\x12\x40" + bytes(100), "Core ML"),
        ("train.py", b"# makes weights\nx = 1\n", "a Python script"),
        ("net.pth", b"import torch\n", "a Python script"),
        ("net.pth", b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        ("net.pth", b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG image"),
        ("net.bin", b"%PDF-1.7\n", "a PDF"),
        ("net.tar", b"net.pth".ljust(257, b"\0") + b"ustar\0" + bytes(300), "a tar archive"),
        ("saved_model.pb", b"\x08\x01\x12\x05", "SavedModel"),
        ("net.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        ("net.pth", b"Entry not found", "text, not weights: 'Entry not found'"),
        ("net.pth", b'{"error": "404"}', "text, not weights"),
        ("net.pt.dvc", b"outs:\n- md5: 4d7a\n  path: net.pt\n", "text, not weights: 'outs: - md5"),
        ("net.t7", b"\4\0\0\0\1\0\0\0\3\0\0\0V 1\r\0\0\0nn.Sequential", "Torch7"),
        ("net.pth", b"", "the file is empty"),
    ],
)
def test_a_wrong_kind_of_file_is_told_with_a_hint(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        weights.read(path)
    message = str(caught.value)
    if content:
        with pytest.raises(ValueError, match=says):
            geometry.audit_file(path)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) <= 300


def test_a_package_of_core_ml_is_told(tmp_path):
    folder = tmp_path / "net.mlpackage"
    folder.mkdir()
    (folder / "Manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="Core ML: export the network to ONNX"):
        weights.read(folder)
    with pytest.raises(ValueError, match="Core ML: export the network to ONNX"):
        report.analyze([folder], tmp_path / "report")


def test_a_damaged_pickle_is_called_one(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"\x80\x02garbage")
    with pytest.raises(ValueError, match="a pickle that is cut or damaged"):
        weights.read(tmp_path / "net.pth")
