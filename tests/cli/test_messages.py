"""What a binary says about words that it does not know, and about files that are not there."""

import pytest


@pytest.mark.parametrize(
    ("binary", "arguments", "says"),
    [
        ("train", ["--confg=digits"], "unknown flag --confg; did you mean '--config'?"),
        ("train", ["--nonsense"], "unknown flag --nonsense; --help lists the flags"),
        ("analyze", ["x", "--layuot=OIHW"], "unknown flag --layuot; did you mean '--layout'?"),
        (
            "train",
            ["--config.epochs=3"],
            "--config.epochs has no config to change; --config=NAME comes first",
        ),
        (
            "train",
            ["--config=digts", "--workdir={t}/run"],
            "digts: no such config; did you mean 'digits'? (--config=list lists the names)",
        ),
        (
            "train",
            ["--config=configs/Digits.py", "--workdir={t}/run"],
            "configs/Digits.py: no such config; did you mean 'digits'? (--config=list lists the "
            "names)",
        ),
        (
            "train",
            ["--config=qqq", "--workdir={t}/run"],
            "qqq: no such config (--config=list lists the names)",
        ),
        (
            "train",
            ["--config=digits", "--workdir={t}/run", "--config.modle.name=vgg11"],
            "unknown config key config.modle; did you mean 'model'?",
        ),
        (
            "train",
            ["--config=digits", "--workdir={t}/run", "--config.data.shfit=1"],
            "unknown config key config.data.shfit; did you mean 'shift'?",
        ),
        (
            "train",
            ["--config=digits", "--workdir={t}/run", "--config.model.nme=vgg11"],
            "small_cnn: unknown fields ['nme']; wanted some of ['blur_size', 'bn_axis_name', "
            "'depth', "
            "'downsample', 'dtype', 'flatten', 'kernel_size', 'max_width', 'norm', 'num_classes', "
            "'padding', 'pool', 'separable', 'strided', 'width']; did you mean 'name'?",
        ),
        (
            "train",
            ["--config=digits", "--workdir={t}/run", "--config.model.name=vg11"],
            "unknown model 'vg11'; did you mean 'vgg11'?",
        ),
        (
            "train",
            ["--config=digits", "--workdir={t}/run", "--config.data.source=digit"],
            "unknown data source 'digit'; known are digits, folder, idx, tfds, masks, tfds-masks, "
            "textures, noise, fake (as kind:place); did you mean 'digits'?",
        ),
        (
            "train",
            ["--config=digits"],
            "--workdir is missing: name a folder for the results, as --workdir=runs/digits",
        ),
        (
            "study",
            ["--study=zo", "--workdir={t}/run"],
            "zo: no such study; did you mean 'zoo'? (--study=list lists the names)",
        ),
        (
            "study",
            ["--study=zoo", "--workdir={t}/run", "--size=smoek"],
            "unknown size 'smoek'; the study has smoke, cpu, full; did you mean 'smoke'?",
        ),
        (
            "study",
            ["--study=zoo"],
            "--workdir is missing: name a folder for the results, as --workdir=runs/zoo",
        ),
        (
            "study",
            ["--workdir={t}/run"],
            "--study is missing: a name (--study=list shows them) or a file",
        ),
        (
            "study",
            ["--study=zoo", "--emit=slrum"],
            "--emit is commands, slurm, skypilot; got 'slrum'; did you mean 'slurm'?",
        ),
        ("audit", ["--model=ResNet5"], "unknown model 'ResNet5'; did you mean 'resnet50'?"),
        (
            "audit",
            ["--model=qqq"],
            "unknown model 'qqq'; `kernsym-audit --model=list` shows them, package.module:Class is "
            "one of your own",
        ),
        (
            "audit",
            ["resnet50"],
            "resnet50: no such file; for the network of this package give --model=resnet50",
        ),
        ("audit", ["resnt50"], "resnt50: no such file; did you mean '--model=resnet50'?"),
        ("audit", ["net.onnx"], "net.onnx: no such file"),
        ("analyze", ["net.onnx"], "net.onnx: no such file or directory"),
        ("analyze", ["a.pt", "b.pt"], "none of 2 sources could be analyzed: a.pt: no such file or "
         "directory; b.pt: no such file or directory"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong_and_what_was_meant(
    run_binary, monkeypatch, tmp_path, binary, arguments, says
):
    monkeypatch.chdir(tmp_path)
    status, out, errors = run_binary(binary, *(word.format(t=tmp_path) for word in arguments))
    assert (status, out) == (2, "")
    assert errors == f"kernsym-{binary}: {says}\n"
    assert not (tmp_path / "run").exists()


def test_audit_tells_which_network_a_file_of_weights_is_of(run_binary, files, tmp_path):
    import writers

    writers.write_cifar_resnet20(tmp_path / "x.th")
    status, _, errors = run_binary("audit", tmp_path / "x.th")
    assert status == 2
    assert errors.count("\n") == 1
    assert errors.endswith(
        "these are weights of cifar_resnet20: --model=cifar_resnet20 audits it\n"
    )
    status, _, errors = run_binary("audit", files["safetensors"])
    assert status == 2
    assert errors.endswith("name the network with --model; --model=list shows those known\n")


@pytest.mark.parametrize("first", ["good", "missing"])
def test_analyze_does_what_it_can_and_names_the_rest(run_binary, files, tmp_path, first):
    text, missing = tmp_path / "text.txt", tmp_path / "nothere.pt"
    text.write_text("no weights\n")
    good = files["npz"]
    places = [good, text, missing] if first == "good" else [missing, text, good]
    status, out, errors = run_binary("analyze", *places, f"--out={tmp_path}/report")
    assert status == 1
    assert f"report: {tmp_path}/report/report.html" in out
    assert (tmp_path / "report" / "layers.csv").read_text().count(str(good)) >= 1
    assert sorted(line.partition(": ")[0] for line in errors.splitlines()) == [
        str(missing),
        str(text),
    ]


def test_a_picture_is_told_to_be_one(run_binary, tmp_path):
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "report.png")
    status, _, errors = run_binary("analyze", tmp_path / "report.png")
    assert status == 2
    assert "report.png: a PNG image, not weights" in errors
