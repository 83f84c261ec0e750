"""The small network of network.py in every format, once for all tests of the readers."""

import gzip
import pathlib
import sys

import pytest

_HERE = pathlib.Path(__file__).parent
# network.py and its companions are also run as programs, from this folder.
sys.path.insert(0, str(_HERE))

import writers


@pytest.fixture(scope="session")
def fixtures():
    """The folder of files that other frameworks have made, see make_fixtures.py."""
    return _HERE / "fixtures"


@pytest.fixture(scope="session")
def files(tmp_path_factory, fixtures):
    """Format -> a file of the network in it."""
    folder = tmp_path_factory.mktemp("formats")
    written = writers.write_all(folder)
    for packed in sorted(fixtures.glob("net.*.gz")):
        path = folder / packed.name.removesuffix(".gz").replace("net.", "keras3.", 1)
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        written[f"keras 3 {path.name.removeprefix('keras3.')}"] = path
    written["tflite"] = fixtures / "net.tflite"
    return written
