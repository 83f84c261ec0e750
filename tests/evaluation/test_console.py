from kernsym_jax import evaluation
from kernsym_jax.evaluation import Shifts


def test_the_table_shows_every_figure_and_names_as_they_are(results, capsys):
    found = results(Shifts("zero", -1, 1))
    evaluation.print_consistency(found)
    out = capsys.readouterr().out
    for figures in (found["accuracy"], found["flip_consistency"]["r270"]["rolled_soft"]):
        assert f"{100 * figures['value']:.2f}" in out
    assert "[bold]cat" in out
    assert "folder:[red]x" in out
    assert "\\x1b[31mdog" in out
    assert "\x1b" not in out
