"""The completion of shells, tried in the shells themselves, on a terminal."""

import os
import pty
import select
import shutil
import subprocess
import time

import pytest

BINARIES = ("train", "evaluate", "analyze", "audit", "study")
PROMPT = b"READY> "
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
SETTINGS = {
    # Without these, shells show escapes and ring the bell, and zsh takes Tab in typed-ahead text as
    # a character.
    "bash": "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; PS1='REA''DY> '",
    "zsh": "autoload -U compinit; compinit -D; zstyle ':completion:*' insert-tab false; "
    "PS1='REA''DY> '",
}


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, shell, folder):
        self.main, side = pty.openpty()
        self.unread = b""
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb"}
        self.process = subprocess.Popen(
            START[shell], stdin=side, stdout=side, stderr=side, cwd=folder, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(side)
        self.send(SETTINGS[shell] + "\n")
        self.read_until(PROMPT)

    def send(self, text):
        os.write(self.main, text.encode())

    def read_until(self, end):
        """Returns what the shell shows up to these bytes."""
        deadline = time.monotonic() + 30
        while end not in self.unread:
            assert time.monotonic() < deadline, self.unread
            if select.select([self.main], [], [], 1)[0]:
                self.unread += os.read(self.main, 4096)
        shown, _, self.unread = self.unread.partition(end)
        return (shown + end).decode(errors="replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.main)


@pytest.fixture(scope="module", params=["bash", "zsh"])
def terminal(request, tmp_path_factory):
    """A shell that knows the completions, whose console scripts show their arguments."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path_factory.mktemp(shell)
    (folder / "network.onnx").touch()
    (folder / "results").mkdir()
    (folder / "results" / "second.csv").touch()
    opened = Terminal(shell, folder)
    yield shell, folder, opened
    opened.close()


@pytest.mark.parametrize(
    ("binary", "typed", "arguments"),
    [
        ("analyze", "--layo\tOI\t", ["--layout=OIHW"]),
        ("analyze", "--fold\tnetw\t", ["--fold_batchnorm", "network.onnx"]),
        ("analyze", "--out=res\tsec\t", ["--out=results/second.csv"]),
        ("audit", "--mod\tcifar_resnet1\t", ["--model=cifar_resnet110"]),
        ("train", "--config=digi\t", ["--config=digits"]),
        ("train", "--config.model.pad\treflect", ["--config.model.padding=reflect"]),
        ("study", "--study=downs\t--si\tsm\t", ["--study=downsampling", "--size=smoke"]),
        ("evaluate", "--shift_m\tcro\t", ["--shift_mode=crop"]),
    ],
)  # fmt: skip
def test_a_shell_completes_what_is_typed(terminal, run_binary, binary, typed, arguments):
    shell, folder, opened = terminal
    status, script, _ = run_binary(binary, f"--completion={shell}")
    assert status == 0
    (folder / "completion").write_text(script)
    opened.send(f"source ./completion; kernsym-{binary}() {{ printf '<%s>' \"$@\"; echo; }}\n")
    opened.read_until(PROMPT)
    opened.send(f"kernsym-{binary} {typed}; echo EN''D\n")
    shown = opened.read_until(b"END\r\n")
    assert "".join(f"<{argument}>" for argument in arguments) in shown
    opened.read_until(PROMPT)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("binary", BINARIES)
def test_a_script_is_one_that_the_shell_can_read(run_binary, tmp_path, binary, shell):
    status, script, _ = run_binary(binary, "--completion", shell)
    assert status == 0
    assert f"kernsym-{binary}" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "completion"
    path.write_text(script)
    subprocess.run([shell, "-n", path], check=True)


def test_an_unknown_shell_is_told_with_the_known_ones(run_binary):
    status, out, errors = run_binary("analyze", "--completion=fish")
    assert (status, out) == (2, "")
    assert errors == "kernsym-analyze: --completion is bash or zsh; got 'fish'\n"
