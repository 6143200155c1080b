from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedunlearn.cli import main
from fedunlearn.experiments import shipped
from tiny import TINY, tiny_text

pytestmark = pytest.mark.usefixtures("quick_attack")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save_file({"conv.weight": torch.ones(2, 3, 1, 1), "conv.bias": torch.ones(2)}, path)
    return path


class Shell:
    """Runs the command line in this process: exit code, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["fedunlearn", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_negating_a_checkpoint(shell: Shell, checkpoint: Path) -> None:
    output = checkpoint.with_name("out.safetensors")
    code, out, err = shell("negate", checkpoint, "--layer", "conv.bias", "--layer", "conv", "-o", output)
    assert (code, err) == (0, "")
    assert out.startswith("negated conv.bias, conv.weight (32 of ")
    assert all(tensor.eq(-1).all() for tensor in load_file(output).values())
    again = ("negate", checkpoint, "--layer", "conv", "--include-bias", "-o", output)
    assert shell(*again)[0] == 2
    assert shell(*again, "--force")[0] == 0


def test_negating_a_checkpoint_in_place(shell: Shell, checkpoint: Path) -> None:
    code, out, err = shell("negate", checkpoint, "--layer", "conv", "--in-place")
    assert (code, out) == (0, f"negated conv.weight (24 of {checkpoint.stat().st_size:,} bytes) in place\n")
    assert "has no room for its sign history, which is in" in err
    assert load_file(checkpoint)["conv.weight"].eq(-1).all()
    assert "negated before" in shell("negate", checkpoint, "--layer", "conv", "--in-place")[2]
    for wrong in ((), ("--in-place", "-o", "x"), ("--in-place", "--force")):
        code, out, err = shell("negate", checkpoint, "--layer", "conv", *wrong)
        assert (code, out) == (2, "")
        assert "--in-place" in err
    assert load_file(checkpoint)["conv.weight"].eq(1).all()


def test_a_folder_with_a_checkpoint(shell: Shell, checkpoint: Path) -> None:
    folder = checkpoint.parent / "hf"
    folder.mkdir()
    checkpoint.rename(folder / "model.safetensors")
    assert "conv.weight" in shell("layers", folder)[1]
    code, out, err = shell("negate", folder, "--layer", "conv", "-o", folder.with_name("new"))
    assert (code, err) == (0, "")
    assert out.endswith(f"-> {folder.with_name('new')}\n")
    assert load_file(folder.with_name("new") / "model.safetensors")["conv.weight"].eq(-1).all()


@pytest.mark.parametrize(
    ("layer", "says"),
    [("konv", "did you mean conv"), ("conv[5:9]", "there are no such rows"), ("x*", "fits no layer")],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(shell: Shell, checkpoint: Path, layer: str, says: str) -> None:
    output = checkpoint.with_name("out.safetensors")
    code, out, err = shell("negate", checkpoint, "--layer", layer, "-o", output)
    assert (code, out) == (2, "")
    assert err.startswith("fedunlearn: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_path_is_no_network(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert "plain holds no safetensors file" in shell("layers", "./plain")[2]
    torch.save({}, tmp_path / "plain" / "model.bin")
    assert "pickled checkpoint" in shell("layers", "./plain")[2]
    assert "No such file" in shell("layers", "gone.pt")[2]
    assert "there is no model" not in shell("layers", "./nowhere/folder")[2]
    (tmp_path / "resnet18").mkdir()
    assert "layer1.0.conv1.weight" in shell("layers", "resnet18")[1]


def test_files_that_cannot_be_read(shell: Shell, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    assert "pickled checkpoint" in shell("layers", tmp_path / "weights.pt")[2]
    code, _, err = shell("layers", tmp_path / "missing.safetensors")
    assert code == 2
    assert "No such file" in err


def test_usage_errors_exit_with_2(shell: Shell, checkpoint: Path) -> None:
    assert shell("negate", checkpoint)[0] == 2
    assert shell("nonsense")[0] == 2


def test_listing_a_file(shell: Shell, checkpoint: Path) -> None:
    code, out, _ = shell("layers", checkpoint)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["index", "name", "shape", "dtype", "kind"],
        ["0", "conv.bias", "2", "float32", "bias"],
        ["1", "conv.weight", "2", "x", "3", "x", "1", "x", "1", "float32", "convolution"],
    ]


def test_listing_a_network_marks_the_default(shell: Shell) -> None:
    code, out, _ = shell("layers", "resnet18")
    lines = out.splitlines()
    assert code == 0
    assert lines[1].split()[:3] == ["0", "conv1.weight", "64"]
    assert [line.split()[1] for line in lines if line.split()[-1] == "default"] == ["conv1.weight"]


def test_listing_a_network_of_ones_own(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))\n"
        "class Hidden(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2)\n"
        "    def forward(self, x): return x if x.sum() > 0 else super().forward(x)\n"
        "def nothing(): return None\n"
        "def picky(width): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = shell("layers", "own_network:build")
    assert code == 0
    assert out.splitlines()[3].split() == ["2", "1.weight", "3", "x", "2", "float32", "linear", "default"]
    for name in ("own_network:nothing", "own_network:picky", "own_network:gone", "no_such:thing", "resnet81"):
        code, out, err = shell("layers", name)
        assert (code, out, err.count("\n")) == (2, "", 1), name


def test_help_comes_at_once(tmp_path: Path) -> None:
    """No torch for help (about 2 s to import), nor for negating a file."""
    code = (
        "import sys; from fedunlearn.cli import main; sys.argv = ['fedunlearn', '--help']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    assert (done.returncode, done.stderr) == (0, "")
    assert "negate" in done.stdout
    # Of the processor, not of the clock: a busy machine must not fail the test.
    assert sum(after[2:4]) - sum(before[2:4]) < 0.5


OWN = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 3))

class Stripes(torch.utils.data.Dataset):
    def __len__(self):
        return 160
    def __getitem__(self, index):
        return torch.full((1, 2, 2), index % 3.0), index % 3

def load():
    return Stripes(), (torch.zeros(30, 1, 2, 2), torch.arange(30) % 3)
"""


def test_running_an_experiment(shell: Shell, tmp_path: Path) -> None:
    plan, output = tmp_path / "tiny.toml", tmp_path / "new" / "run"
    plan.write_text(TINY)
    code, out, err = shell("run", plan, "--output", output, "--set", "seeds=[4, 5]", "--workers", "1")
    assert code == 0, err
    assert out.startswith("Tiny\n")
    assert [line.split()[0] for line in out.splitlines()[2:10:2]] == ["Original", "Retrain", "FT", "NoT"]
    assert max(map(len, out.splitlines())) - len(str(output)) <= 80
    assert out.endswith(f"report: {output / 'report.html'}\n")
    report = json.loads((output / "report.json").read_text())
    assert {row["seed"] for row in report["rows"]} == {4, 5}
    assert [line["method"] for line in report["tables"]["fixed"]] == ["Original", "Retrain", "FT", "NoT"]
    assert report["sessions"][0]["command"].endswith("--set 'seeds=[4, 5]' --workers 1")
    for name in ("report.html", "table.csv", "table.md", "table.tex", "figures/gap-bytes.svg", "figures/gap-bytes.pdf"):
        assert (output / name).stat().st_size > 200, name


def test_running_with_a_network_and_data_of_the_users(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "mine.py").write_text(OWN)
    shell.monkeypatch.chdir(tmp_path)
    shell.monkeypatch.setattr(sys, "path", list(sys.path))
    own = ("--set", "model.name=mine:Net", "-s", "model.options={}", "-s", "data.name=mine:load")
    code, out, err = shell("run", "tiny.toml", *own, "--workers", "2")
    assert code == 0, err
    assert out.endswith("report: runs/tiny/report.html\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quickstar"], f"there is no experiment 'quickstar': give a TOML file, or one of {', '.join(shipped())}"),
        (["tiny.toml", "-s", "seeds=one"], '--set seeds=one: seeds: must be an array, not "one"'),
        (["tiny.toml", "-s", "seeds=[1,1]"], "--set seeds=[1,1]: seeds: must differ from one another"),
        (["tiny.toml", "-s", "seeds"], "--set seeds: write KEY=VALUE, such as training.rounds=20"),
        (["tiny.toml", "-s", "data.name=digit"], "there is no data set 'digit' (did you mean digits?)"),
        (["tiny.toml", "-s", "model.name=nowhere:Net"], "there is no module 'nowhere'"),
        (["tiny.toml", "-s", "model={name='resnet18'}"], "takes images of 3 channels"),
        (["tiny.toml", "-s", "data.name=fashion-mnist", "--data-dir", "."], "apt-get install dataset-fashion-mnist"),
        (["tiny.toml", "--download"], "there is nothing to download for 'digits'"),
        (["tiny.toml", "-o", "tiny.toml"], "tiny.toml is a file: name a folder for the run with --output"),
        (["tiny.toml", "-o", "tiny.toml/run"], "not being a folder one can write to"),
        (["tiny.toml", "-o", "."], ". holds tiny.toml, but no run"),
    ],
)
def test_a_run_that_cannot_be(shell: Shell, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    shell.monkeypatch.chdir(tmp_path)
    code, out, err = shell("run", *arguments, "--workers", "1")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


def test_all_that_is_wrong_with_a_file_is_told_a_line_each(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(re.sub("rounds = .", "rounds = 0", TINY).replace("clients", "clinets"))
    code, out, err = shell("run", tmp_path / "tiny.toml")
    assert (code, out) == (2, "")
    assert [line.split("tiny.toml:")[1].split(": ")[:2] for line in err.splitlines()] == [
        ["6", "data.clinets"],
        ["12", "training.rounds"],
        ["18", "recovery.rounds"],
    ]


def test_what_was_done_before_an_error_is_kept_and_gone_on_with(shell: Shell, tmp_path: Path) -> None:
    def failing(*_: object) -> None:
        raise ValueError("too late")

    plan, output = tmp_path / "tiny.toml", tmp_path / "run"
    plan.write_text(tiny_text('methods=["Retrain", "NoT"]'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedunlearn.methods.negation.NoT.unlearn", failing)
        code, _, err = shell("run", plan, "-o", output, "--workers", "1")
    assert (code, err.splitlines()[-1]) == (2, "fedunlearn: too late")
    assert (output / "seed-3/2-Retrain/complete.json").is_file()
    code, _, err = shell("report", output)
    assert code == 2
    assert "no seed is complete yet: let the run go on, by the same command" in err
    assert shell("run", plan, "-o", output, "--workers", "1")[0] == 0


def test_ctrl_c_says_how_to_go_on(shell: Shell, tmp_path: Path) -> None:
    from fedunlearn import runner

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "tiny.toml").write_text(TINY)
    arguments = ("run", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--workers", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._Contender, "_unlearned", interrupted)
        code, out, err = shell(*arguments)
    assert (code, out) == (130, "")
    stopped = f"fedunlearn: stopped; what was done is in {tmp_path / 'run'}, and the same command goes on"
    assert err.splitlines() == ["seed 3, Original", "seed 3, Retrain", stopped]
    assert shell(*arguments)[0] == 0


def test_a_report_anew_and_elsewhere(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    assert shell("run", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--workers", "1")[0] == 0
    first = (tmp_path / "run" / "report.html").read_bytes()
    code, out, _ = shell("report", tmp_path / "run")
    assert code == 0
    assert out.startswith("Tiny\n")
    assert (tmp_path / "run" / "report.html").read_bytes() == first
    code, out, _ = shell("report", tmp_path / "run" / "report.json", "-o", tmp_path / "copy")
    assert code == 0
    assert (tmp_path / "copy" / "table.csv").read_text().count("\n") == 1 + 3 * 4
    code, out, _ = shell("report", tmp_path / "run", "--json")
    assert json.loads(out)["tables"]["oracle"][3]["method"] == "NoT"
    for wrong, says in ((tmp_path, "is no run's folder"), (tmp_path / "nothing", "there is no run at")):
        code, out, err = shell("report", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
    (tmp_path / "other.json").write_text('{"format": 9}')
    assert "is no report of this version" in shell("report", tmp_path / "other.json")[2]
    (tmp_path / "other.json").write_text('{"format": 1, "experiment": 3}')
    assert "other.json is no report: experiment: " in shell("report", tmp_path / "other.json")[2]
    (tmp_path / "other.json").write_text('{"format": 1, "experiment": {}, "rows": [], "partitions": {}}')
    assert "other.json is no report that could be shown" in shell("report", tmp_path / "other.json")[2]
    (tmp_path / "other.json").write_text("[1]")
    assert "other.json holds no table" in shell("report", tmp_path / "other.json")[2]


def test_comparing_runs(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    shell.monkeypatch.chdir(tmp_path)
    for name, more in (("one", ()), ("two", ("-s", "training.rounds=3", "-s", "training.clip=1.0"))):
        assert shell("run", "tiny.toml", "-o", f"runs/{name}", *more, "--workers", "1")[0] == 0
    code, out, err = shell("compare", "runs/one", "runs/two")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Differs", "one", "two"]
    assert ["training.rounds", "2", "3"] in lines
    assert ["training.clip", "1.0"] in lines
    assert [line[:2] for line in lines if line[:1] in (["one"], ["two"])] == [
        [run, method] for run in ("one", "two") for method in ("Original", "Retrain", "FT", "NoT")
    ]
    assert out.endswith("page: runs/compared/compare.html\n")
    code, out, _ = shell("compare", "runs/one", "runs/two", "--json")
    told = json.loads(out)
    assert told["differences"]["training.rounds"] == [2, 3]
    assert told["runs"]["two"]["tables"]["fixed"][1]["method"] == "Retrain"
    code, out, err = shell("compare", "runs/one", "runs/one")
    assert "the experiments do not differ" in out
    assert shell("compare", "runs/one")[2] == "fedunlearn: a comparison needs two runs or more: name their folders\n"


def test_handing_a_run_to_trackers(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    assert shell("run", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--workers", "1")[0] == 0
    code, out, err = shell("export", tmp_path / "run", "--tensorboard", tmp_path / "logs")
    assert (code, out) == (0, f"7 log directories in {tmp_path / 'logs'}\n"), err
    assert len(list((tmp_path / "logs" / "run").iterdir())) == 7  # four with a seed, three with a gap
    code, _, err = shell("export", tmp_path / "run")
    assert (code, err) == (2, "fedunlearn: say where to: --tensorboard FOLDER, --mlflow URI, or both\n")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, err = shell("export", tmp_path / "run", "--mlflow", tmp_path / "ml")
    assert (code, err) == (2, "fedunlearn: MLflow is not installed: pip install 'fedunlearn[mlflow]'\n")


def test_json_for_scripts(shell: Shell, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    code, out, _ = shell("run", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--workers", "1", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["folder"] == str(tmp_path / "run")
    assert {line["method"]: line["gap"]["of_means"] for line in told["tables"]["fixed"]}["Retrain"] == 0
    _, out, _ = shell("experiments", "--json")
    listed = json.loads(out)
    assert [one["name"] for one in listed] == list(shipped())
    assert all(one["minutes"] > 0 for one in listed)
    _, out, _ = shell("layers", checkpoint, "--json")
    assert json.loads(out)[1] == {
        "index": 1, "name": "conv.weight", "shape": [2, 3, 1, 1], "dtype": "float32", "kind": "convolution",
        "default": False,
    }  # fmt: skip
    _, out, _ = shell("layers", "layernorm-cnn", "--json")
    assert {row["name"]: row["default"] for row in json.loads(out)}["conv1.weight"]


def test_listing_what_is_shipped(shell: Shell) -> None:
    code, out, _ = shell("experiments")
    assert code == 0
    assert "quickstart: A clinic with a sideways scanner leaves (0.7 min)\n" in out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fedunlearn ex", {"experiments", "export"}),
        ("fedunlearn run q", {"quickstart"}),
        ("fedunlearn run m", {"mine.toml"}),
        ("fedunlearn report r", {"runs/one"}),
        ("fedunlearn compare runs/one r", {"runs/one"}),
        ("fedunlearn run quickstart --do", {"--download"}),
    ],
)
def test_the_shell_completes(tmp_path: Path, words: str, offered: set[str]) -> None:
    (tmp_path / "mine.toml").write_text(TINY)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "experiment.toml").touch()
    code = (
        "import sys; from fedunlearn.cli import main; sys.argv = ['fedunlearn']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    number = str(len(words.split()) - 1)
    asks = {"_FEDUNLEARN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asks},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error" not in done.stderr
    assert set(done.stdout.split()) == offered


def test_negating_twice_and_running_means_are_told(shell: Shell, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    save_file({"conv.weight": torch.ones(2, 3, 1, 1), "bn.running_mean": torch.ones(2)}, paths[0])
    code, _, err = shell("negate", paths[0], "--layer", "conv", "-o", paths[1])
    assert code == 0
    assert "1 running means of BatchNorm were left alone" in err
    assert "negated before" not in err
    code, _, err = shell("negate", paths[1], "--layer", "conv", "-o", paths[2])
    assert code == 0
    assert "conv.weight had been negated before: that is undone" in err


def test_the_capability_matrix(shell: Shell) -> None:
    code, out, _ = shell("methods")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert rows["NoT"] == ["-", "-", "-", "-", "-", "-", "anything"]
    assert rows["FUKD"] == ["sum", "-", "-", "-", "server's", "-", "clients"]
    assert rows["FedOSD"] == ["-", "labelled", "online", "online", "-", "seen", "anything"]
    assert rows["MoDE(guide_target=False)"] == ["-", "-", "-", "online", "-", "-", "anything"]
    assert max(map(len, out.splitlines())) <= 100
    _, out, _ = shell("methods", "--json")
    told = {(one["method"], *one["hyperparameters"]): one["needs"] for one in json.loads(out)}
    assert told["PGD",]["history"] == "last_local"
    assert told["MoDE",]["target_online"]
    assert not told["MoDE", "guide_target"]["target_online"]


def test_one_method_and_its_defaults(shell: Shell) -> None:
    code, out, _ = shell("methods", "FUKD")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "FUKD"
    assert lines[1].startswith("Subtract all that the leaving clients ever added")
    assert [line.split() for line in lines[2:]] == [
        ["Hyper-parameter", "Default"],
        ["lr", "0.0001"],
        ["momentum", "0.9"],
        ["epochs", "3"],
        ["temperature", "3.0"],
        ["Preset", "Hyper-parameter", "Value", "Source"],
        ["paper-cnn", "lr", "0.0001", "supplement"],
        ["momentum", "0.9", "supplement"],
        ["epochs", "3", "supplement"],
        ["temperature", "3.0", "supplement"],
    ]
    assert "paper-vit: the supplement's learning rate is lost" in shell("methods", "FCU")[1]
    assert shell("methods", "Retrain")[1].endswith("It has no hyper-parameters.\n")
    told = json.loads(shell("methods", "NoT", "--json")[1])
    expected = {"layers": "first", "include_bias": False, "batchnorm": "negate_mean", "again": "other"}
    assert told["hyperparameters"] == {**expected, "annealing": None}
    assert told["says"].startswith("Algorithm 1: ")
    assert told["presets"]["paper-vit"]["values"]["layers"] == "conv_proj"
    code, out, err = shell("methods", "not")
    assert (code, out) == (2, "")
    assert err.startswith("fedunlearn: there is no method 'not' (did you mean NoT?): take one of Retrain, FT, NoT, ")


RESNET = ("--model", "resnet18", "--shape", "3,32,32", "--clients", "10", "--samples", "500", "--rounds", "50")


def test_recommending(shell: Shell) -> None:
    code, out, err = shell("recommend", *RESNET, "--target-gone", "--no-history", "--max-bytes", "60 GB")
    assert code == 0, err
    able, over, cannot, last = out.split("\n\n")
    assumed, *table = able.splitlines()
    assert assumed == "resnet18, 10 clients with 500 samples, 1 leaving; kept of the training: nothing"
    lines = [line.split() for line in table[2:]]
    assert [line[0] for line in lines if line[0] != "Perturb"] == [
        *("FT", "NoT", "NotNot", "l1-sparse", "MoDE(guide_target=False)", "Retrain"),
    ]
    parameters = 11_181_642  # of torchvision's ResNet-18 with ten classes
    assert lines[0][2:6] == ["0", "B", f"{50 * 9 * 2 * 4 * parameters / 1e9:.1f}", "GB"]
    assert lines[-1][-2:] == ["over", "budget"]
    assert [" ".join(line.split()) for line in over.splitlines()] == [
        "Over budget Why",
        "Retrain - 80.5 GB sent, more than 60 GB",
    ]
    assert "FedEraser" in cannot
    assert "record it while training" in cannot
    assert "closed form" in last
    assert max(map(len, out.splitlines())) <= 100


def test_recommending_to_scripts(shell: Shell) -> None:
    from fedunlearn.evaluation.flops import SampleFlops
    from fedunlearn.needs import Circumstances, Size
    from fedunlearn.programs import LocalTraining
    from fedunlearn.recommend import recommend

    _, out, _ = shell("recommend", *RESNET, "--leaving", 2, "--proxy", 70, "--training-rounds", 60, "--json")
    told = json.loads(out)
    model = told["model"]
    assert model["bytes"] == 4 * 11_181_642
    held = {str(k): 500 for k in range(10)}
    size = Size(
        model["bytes"], 0, 62, LocalTraining(), {k: held[k] for k in held if k > "1"}, {"0": 500, "1": 500},
        proxy=70, clients=10, rounds=60,
    )  # fmt: skip
    found = Circumstances(frozenset({"norms", "sum", "last_local", "updates"}), proxy=True)
    flops = SampleFlops(model["forward_flops"], model["backward_flops"])
    offers = recommend(size, found, flops, 50, training_rounds=60)
    assert told["offers"] == json.loads(json.dumps([offer.summary() for offer in offers]))
    assert all(offer["can_run"] for offer in told["offers"])

    _, out, _ = shell("recommend", "--scope", "class", "--secure-aggregation", "--history", "norms", "--json")
    lacking = {offer["method"]: offer["lacking"] for offer in json.loads(out)["offers"] if not offer["can_run"]}
    assert {name: len(reasons) for name, reasons in lacking.items()} == {
        "FedEraser": 1, "FedAccum": 2, "FUKD": 3, "PGD": 2, "FedOSD": 1,
    }  # fmt: skip
    _, out, _ = shell("recommend", "--secure-aggregation", "--proxy", 70, "--json")  # of what was it to keep a history?
    lacking = {offer["method"] for offer in json.loads(out)["offers"] if not offer["can_run"]}
    assert lacking == {"FedEraser", "FedAccum", "FUKD", "PGD", "FedOSD"}
    _, out, _ = shell("recommend", "--scope", "instances", "--share", "0.25", "--samples", 100, "--json")
    told = json.loads(out)
    special, regular = (offer["unlearning"]["flops"] for offer in told["offers"] if offer["method"] == "PUF")
    one = told["model"]["forward_flops"] + told["model"]["backward_flops"]
    assert (special, regular) == (10 * 25 * one, 10 * 100 * one)
    _, out, _ = shell("recommend", "--recovery-epochs", 2, "--rounds", 5, "--leaving", 4, "--samples", 100, "--json")
    (tuned,) = (offer["total"] for offer in json.loads(out)["offers"] if offer["method"] == "FT")
    assert tuned["flops"] == 5 * 6 * 2 * 100 * one


def test_a_method_that_does_not_fit_the_network_is_not_recommended(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    (tmp_path / "lone.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    _, out, _ = shell("recommend", "--model", "lone:build", "--shape", "3,2,2", "--classes", 3, "--json")
    cannot = {offer["method"]: offer["lacking"] for offer in json.loads(out)["offers"] if not offer["can_run"]}
    assert set(cannot) == {"NotNot", "FUKD"}  # of which FUKD needs proxy data
    assert "no two layers in a row" in cannot["NotNot"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--history", "norms", "--no-history"], "leave out one of them"),
        (["--history", "norm"], "there is no history of kind 'norm': name one of norms, sum, last_local, updates"),
        (["--leaving", "4", "--clients", "4"], "--leaving 4 of --clients 4: somebody must stay, so lower it"),
        (["--scope", "clients"], "--scope is client, class or instances, not 'clients'"),
        (["--scope", "class", "--target-gone"], "those who hold what goes stay, so leave it out"),
        (["--scope", "class", "--leaving", "2"], "with --scope class nobody leaves, so give --share"),
        (["--share", "0.5"], "where whole clients go, give --leaving"),
        (["--scope", "instances"], "say with --share what part of each client's samples goes"),
        (["--scope", "instances", "--share", "1"], "--share must be above 0 and below 1, such as 0.05, not 1"),
        (["--scope", "instances", "--share", "nan"], "--share must be above 0 and below 1"),
        (["--scope", "class", "--samples", "3"], "a share of 0.1 of --samples 3 is not one of them: change one of the"),
        (["--scope", "class", "--share", "0.9", "--samples", "3"], "--samples 3 is all of them"),
        (["--max-bytes", "2gb"], "--max-bytes: there is no unit 'gb' of bytes: write B, kB, MB"),
        (["--max-storage", "much"], "--max-storage: 'much' is no amount of bytes: write it as 2GB"),
        (["--max-flops", "-1"], "--max-flops must be above 0 and below 1e+30, such as 1e15, not -1"),
        (["--epochs", "0"], "--epochs must be above 0 and below 1e+30, such as 1"),
        (["--recovery-epochs", "0"], "--recovery-epochs must be above 0 and below 1e+30, such as 2"),
        (["--epochs", "nan"], "--epochs must be above 0 and below 1e+30, such as 1"),
        (["--shape", "3x32x32"], "--shape 3x32x32: write the sizes of one input, such as 3,32,32"),
        (["--shape", "3,0,32"], "--shape 3,0,32: write the sizes"),
        (["--model", "resnet81"], "there is no model 'resnet81' (did you mean resnet18 or small-resnet?)"),
        (["--model", "resnet18", "--shape", "1,28,28"], "takes images of 3 channels"),
        (["--model", "resnet18", "--classes", str(10**15)], "resnet18 fails at inputs of shape (3, 32, 32)"),
    ],
)
def test_recommendations_that_cannot_be(shell: Shell, arguments: list[str], says: str) -> None:
    code, out, err = shell("recommend", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
