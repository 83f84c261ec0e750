import pathlib

import pytest


@pytest.fixture
def micro_study():
    return pathlib.Path(__file__).with_name("micro_study.py")
