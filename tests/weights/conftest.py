"""The small network of network.py in every format, once for all tests of the readers."""

import pathlib
import sys

import pytest

# network.py and its companions are also run as programs, from this folder.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import writers


@pytest.fixture(scope="session")
def fixtures():
    """The folder of files that other frameworks have made, see make_fixtures.py."""
    return writers.FIXTURES


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Format -> a file or folder of the network in it."""
    return writers.write_all(tmp_path_factory.mktemp("formats"))
