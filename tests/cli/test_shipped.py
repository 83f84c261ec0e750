"""Configs and studies by name, and what is told about a config that cannot be read."""

import pytest
from absl import flags

from kernsym_jax import cli


def test_a_name_is_that_of_the_file_in_the_package(repository):
    assert cli.find_shipped(cli.CONFIGS, "digits") == repository / "configs" / "digits.py"
    study = repository / "configs" / "studies" / "zoo.py"
    assert cli.find_shipped(cli.STUDIES, "zoo") == study


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("def get_config():\n    return {'seed': 7}\n")
    assert cli.ConfigFile().parse("digits") == {"seed": 7}


def test_a_folder_of_the_same_name_does_not_hide_a_config(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert cli.find_shipped(cli.CONFIGS, "digits").parent == repository / "configs"


def test_a_word_behind_a_colon_goes_to_the_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(word='none'):\n    return {'word': word}\n")
    assert cli.ConfigFile().parse(str(path)) == {"word": "none"}
    assert cli.ConfigFile().parse(f"{path}:wide") == {"word": "wide"}


def test_a_config_may_define_a_dataclass(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Wish:\n    seed: int = 3\n"
        "def get_config():\n    return dataclasses.asdict(Wish())\n"
    )
    assert cli.ConfigFile().parse(str(path)) == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def get_config():\n    return 1 / 0\n",
            "mine.py, line 2: ZeroDivisionError: division by",
        ),
        ("import nowhere_to_be\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nowh"),
        ("def get_config(:\n", "mine.py, line 1: invalid syntax"),
        ("seed = 3\n", "mine.py: not a config, it has no get_config()"),
        ("def get_config():\n    pass\n", "mine.py: get_config() returns None"),
    ],
)
def test_a_config_that_cannot_be_read_is_told_with_its_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(flags.Error) as caught:
        cli.ConfigFile().parse(str(path))
    assert str(caught.value).startswith(str(tmp_path / says.split(":")[0].split(",")[0]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "offer"),
    [
        ("digts", "; did you mean 'digits'?"),
        ("DIGITS", "; did you mean 'digits'?"),
        ("elephant", ""),
        ("", ""),
    ],
)
def test_the_nearest_word_is_offered_only_if_it_is_close(word, offer):
    assert cli.nearest(word, ["textures", "digits"]) == offer
