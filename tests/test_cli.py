"""The command line: whole runs on generated videos, signals, and one clear line for each error."""

import ast
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from dclr.cli import main
from dclr.config import PretrainConfig
from dclr.data.synth import SynthConfig, synthesize
from dclr.methods import METHODS
from dclr.models import ENCODERS
from dclr.presets import PRESETS
from dclr.training import load_checkpoint, load_method, read_metrics

from .processes import HEED, OWN_TERMINAL, doing_first

SMALL = [
    "--encoder", "r2plus1d_tiny", "--data.dataset", "folder", "--data.label", "motion", "--data.frames", "4",
    "--data.stride", "1", "--data.size", "16", "--data.workers", "0", "--train.batch", "4", "--train.log-every", "1",
    "--train.device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=9, test=8, size=16, frames=8, objects=2), progress=False)
    return root


def failing(capsys, *argv):
    """Exit status and the last line of stderr."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return stop.value.code, lines[-1]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["pretrian"], 2, "dclr: unknown command 'pretrian'; did you mean pretrain?"),
        (["pretrain", "--preset", "dclr_ufc101"], 2, "dclr: unknown preset 'dclr_ufc101'; did you mean dclr_ucf101?"),
        (["pretrain", "--train.epohcs", "3"], 2,
         "dclr: unknown argument '--train.epohcs'; did you mean --train.epochs?"),
        (["pretrain", "--method.alignment.lamda=3"], 2,
         "dclr: unknown argument '--method.alignment.lamda'; did you mean --method.alignment.lambda?"),
        (["pretrain", "--train.epochs", "x"], 2,
         "dclr: --train.epochs: got 'x', expected a whole number"),
        (["pretrain", "--optim.lr", "fast"], 2, "dclr: --optim.lr: got 'fast', expected a number"),
        (["pretrain", "--train.epochs", "0"], 2, "dclr: train.epochs: got 0, expected at least 1"),
        (["pretrain", "--method.temperature", "0"], 2,
         "dclr: method.temperature: got 0.0, expected a temperature above 0"),
        (["pretrain", "--method", "smclr"], 2, "dclr: unknown method smclr; did you mean simclr?"),
        (["pretrain", "--preset"], 2, "dclr: --preset: expected a value"),
        (["pretrain", "--list-presets", "stray"], 2, "dclr: unknown argument 'stray'"),
        (["pretrain", "--augment.brightness", "-1"], 2,
         "dclr: augment.brightness: got -1.0, expected a strength of at least 0"),
        (["pretrain", "stray"], 2, "dclr: unknown argument 'stray'"),
        (["pretrain"], 1, "dclr: data.root: got none, expected the folder of the videos (data.dataset is ucf101)"),
        (["linear"], 2, "dclr: --checkpoint is required"),
        (["retrieve", "--checkpoint", "none.pt", "--kss", "1"], 2,
         "dclr: unknown argument '--kss'; did you mean --ks?"),
        (["retrieve", "--checkpoint", "none.pt", "--ks", "5", "0"], 2,
         "dclr: ks: got (5, 0), expected numbers of at least 1"),
        (["linear", "--checkpoint", "none.pt", "--seeds"], 2, "dclr: seeds: got none, expected at least one"),
        (["linear", "--checkpoint", "none.pt", "--linear.epochs", "0"], 2,
         "dclr: linear.epochs: got 0, expected at least 1"),
        *((["knn", "--checkpoint", "none.pt", f"--data.{name}", "0"], 2,
           f"dclr: data.{name.replace('-', '_')}: got 0, expected at least 1")
          for name in ("split", "frames", "stride", "size", "clips", "batch-videos")),
        (["retrieve", "--checkpoint", "none.pt"], 1, "dclr: none.pt: cannot be read (No such file or directory)"),
    ],
)  # fmt: skip
def test_wrong_command_lines(capsys, tmp_path, monkeypatch, argv, status, message):
    monkeypatch.chdir(tmp_path)
    assert failing(capsys, *argv) == (status, message)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.dataset", "ucf110"], "unknown dataset 'ucf110'; did you mean 'ucf101'?"),
        (["--encoder", "r2plus1d_tny"], "unknown encoder 'r2plus1d_tny': did you mean 'r2plus1d_tiny'?"),
        (["--data.frames", "40"], "a clip spans 41 raw frames"),
        (["--resume"], "/run, which has no checkpoints/last.pt; --resume-or-start would start one"),
    ],
)
def test_wrong_runs(capsys, tmp_path, videos, argv, message):
    output = ["--output", str(tmp_path / "run"), "--data.root", str(videos)]
    status, line = failing(capsys, "pretrain", *SMALL, *output, *argv)
    assert status == 1 and message in line
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset"):
        main(["pretrain", "--debug", "--data.dataset", "x", "--data.root", str(tmp_path)])


def test_help_and_presets(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in ("pretrain", "linear", "retrieve", "synth", "demo"))
    main(["pretrain", "--list-presets"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(len(line.split()) > 3 for line in lines)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--preset", "simclr_ucf101", "--help-all"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--method.temperature" in out and "--method.search" not in out
    assert "--encoder {r2plus1d_vcop," in " ".join(out.split())


def test_the_first_help_is_one_screen_and_names_what_there_is(capsys):
    main(["pretrain", "--preset", "simclr_ucf101", "--help"])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert all(flag in out for flag in ("--preset", "--method", "--config", "--resume", "--help-all", "dclr pretrain"))
    words = set(out.split())
    rows = {name for name in PRESETS if re.match(r"[TF]\d", name)}
    assert (PRESETS.keys() - rows) | ENCODERS.keys() | (METHODS.keys() - {"classifier"}) <= words
    for flag in re.findall(r"--((?:data|train|optim)\.[\w-]+)", out):
        section, name = flag.split(".")
        assert hasattr(getattr(PretrainConfig(), section), name.replace("-", "_"))


def test_help_imports_nothing_slow():
    """torch alone takes seconds where the disk is slow."""
    script = (
        "import sys; from dclr.cli import main; main(['pretrain', '--help']); print([*sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: dclr pretrain" in done.stdout
    assert not {"torch", "numpy", "yaml", "tyro", "tqdm"} & set(ast.literal_eval(done.stderr))


def test_flags_win_over_file_and_file_over_preset(tmp_path, videos):
    (tmp_path / "run.yaml").write_text("train: {epochs: 7, seed: 5}\nmethod: {temperature: 0.3}\n")
    run = tmp_path / "run"
    argv = ["--preset", "simclr_ucf101", "--config", str(tmp_path / "run.yaml"), *SMALL]
    main(["pretrain", *argv, "--train.epochs=1", "--output", str(run), "--data.root", str(videos)])
    _, config, position = load_method(run)
    assert (config.train.epochs, config.train.seed, config.method.temperature) == (1, 5, 0.3)
    assert position["epoch"] == 1


def test_pretrain_resume_retrieve_linear(tmp_path, videos, capsys):
    run = str(tmp_path / "run")
    main(["pretrain", "--method", "simclr", *SMALL, "--train.epochs", "1", "--output", run, "--data.root", str(videos)])
    status, line = failing(capsys, "pretrain", *SMALL, "--output", run, "--data.root", str(videos))
    assert status == 1 and "already holds a run; expected --resume" in line
    main(["pretrain", "--output", run, "--resume", "--train.epochs", "2"])
    assert read_metrics(run)[-1]["step"] == 4
    capsys.readouterr()
    clips = ["--data.clips", "2", "--data.workers", "0", "--device", "cpu"]
    main(["retrieve", "--checkpoint", run, *clips, "--ks", "1", "8", "--data.test-where", "split=train"])
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "run/retrieve_folder/metrics.jsonl").read_text())
    assert record["R@1"] < 100 and record["R@8"] == record["chance"]["R@8"], "no video finds itself"
    assert record["protocol"] in out and "split=train" in record["protocol"]
    output = tmp_path / "linear"
    for label in ("motion", "scene"):
        main(["linear", "--checkpoint", f"{run}/checkpoints/last.pt", *clips, "--data.label", label,
              "--linear.epochs", "1", "--output", str(output)])  # fmt: skip
    records = read_metrics(output)
    assert len(records) == 2 and all(0 <= record["top1"] <= 100 for record in records)
    assert "label scene" in records[1]["protocol"] and records[1]["epoch"] == 2


def test_finetune(tmp_path, videos, capsys):
    run = str(tmp_path / "run")
    main(["pretrain", "--method", "simclr", *SMALL, "--train.epochs", "1", "--output", run, "--data.root", str(videos)])
    flags = ["--checkpoint", run, "--data.clips", "2", "--data.workers", "0", "--train.device", "cpu"]
    main(["finetune", "--recipe", "fame", *flags, "--train.epochs", "1", "--train.batch", "4"])
    record = read_metrics(tmp_path / "run/finetune_folder")[-1]
    assert record["evaluation"] == "finetune" and 0 <= record["top1"] <= 100
    assert record["protocol"] in capsys.readouterr().out and "crop native" in record["protocol"]
    page = (tmp_path / "run/finetune_folder/report.html").read_text()
    assert record["protocol"] in page and "<svg" in page
    assert failing(capsys, "finetune", *flags, "--recipe", "famee")[1] == (
        "dclr: unknown recipe 'famee'; did you mean fame?"
    )


def test_a_finetuning_goes_on_as_it_was_asked_for(tmp_path, videos, capsys, monkeypatch):
    """Its start, recipe and settings are those of its run; only what is given anew changes."""
    run, clips = str(tmp_path / "run"), ["--data.clips", "2", "--data.stride", "1", "--data.workers", "0"]
    train = ["--train.device", "cpu", "--train.epochs", "1", "--train.batch", "4"]
    main(["pretrain", "--method", "simclr", *SMALL, "--train.epochs", "1", "--output", run, "--data.root", str(videos)])
    monkeypatch.chdir(tmp_path)
    main(["finetune", "--checkpoint", "run", *clips, *train, "--scratch", "--recipe", "dualvar_ucf101"])
    main(["finetune", "--checkpoint", run, "--resume", "--train.epochs", "2"])
    status, line = failing(capsys, "finetune", "--checkpoint", run, "--resume", "--optim.lr", "9")
    assert status == 1 and "its steps so far would have been others with optim.lr 9.0 (the run has 0.05)" in line
    main(["finetune", "--checkpoint", run, "--resume"])  # there is nothing left to train
    protocols = [record["protocol"] for record in read_metrics("run/finetune_folder") if "protocol" in record]
    for part in ("from random weights", "crop short128", "mean softmax probabilities", "batch 4, 1 epochs"):
        assert part in protocols[0]
    after = protocols[0].replace("1 epochs of", "2 epochs of").replace("x0.1 at 0.3,0.6,0.8", "x0.1 at 0.6,1.2,1.6")
    assert protocols[1:] == [after, after]
    status, line = failing(capsys, "finetune", "--checkpoint", run, "--resume", "--no-scratch")
    assert status == 1 and line.endswith(
        f"its run starts from random weights, this one from {run}/checkpoints/last.pt: cannot resume"
    )


def test_synth(tmp_path, capsys):
    flags = ["--synth.train", "1", "--synth.test", "1", "--synth.size", "16", "--synth.frames", "2"]
    main(["synth", "--root", str(tmp_path / "set"), *flags])
    assert capsys.readouterr().out.strip().endswith("labels.csv")
    assert len(os.listdir(tmp_path / "set" / "videos")) == 2


def test_closed_streams_and_no_docstrings(tmp_path):
    """Whoever reads stdout has gone, stderr is closed, and PYTHONOPTIMIZE=2 drops what presets say of themselves."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dclr", "pretrain", "--list-presets"]
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    process = subprocess.Popen(doing_first("import os; os.close(2)", command), stdout=write, env=environment)
    os.close(write)
    assert process.wait(timeout=300) == 128 + signal.SIGPIPE


def test_ctrl_c_in_the_midst_of_an_import():
    """Python may lose it there, or show where it was."""
    script = (
        "import os, signal, time; from dclr import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which tests in the background do not have
        "def slow(name): os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "cli._command = slow; cli.main(['pretrain'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_names_with_blanks_and_bytes_that_are_no_text(tmp_path, videos):
    """One broken file of five; the run is told as it begins, goes through, and names the next command."""
    root = os.fsencode(tmp_path / "my videos")
    for number, name in enumerate(sorted(path.name for path in (videos / "videos").glob("*.mp4"))[:4]):
        folder = os.path.join(root, (b"a", b"b")[number % 2])
        os.makedirs(folder, exist_ok=True)
        shutil.copy(videos / "videos" / name, os.path.join(folder, b"%d.mp4" % number))
    with open(os.path.join(root, b"a", b"broken\xff.mp4"), "wb") as file:
        file.write(b"no video")
    run = tmp_path / "my run"
    without_label = [*SMALL[:4], *SMALL[6:]]
    flags = [*without_label, "--data.root", os.fsdecode(root), "--output", str(run), "--method", "simclr"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "dclr", "pretrain", *flags, "--train.epochs", "2"]
    done = subprocess.run(command, capture_output=True, env=environment)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, err
    assert "broken\\udcff.mp4" in out
    for verb, line in zip(("visualize", "extract", "knn"), out.splitlines()[-3:]):
        assert line.startswith(f"  dclr {verb} --checkpoint '{run}'  # ")
    assert "videos      5 in 2 classes" in err
    assert "Traceback" not in err


def test_a_disk_that_fills_while_a_run_saves(tmp_path, videos, capsys):
    """One line, the last good checkpoint is kept, nothing else is left, and the run goes on once there is room."""
    run = ["--output", str(tmp_path / "run"), "--data.root", str(videos), "--method", "simclr"]
    main(["pretrain", *SMALL, *run, "--train.epochs", "1"])
    before = load_checkpoint(tmp_path / "run")["position"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        status, line = failing(capsys, "pretrain", "--resume", *run[:2], "--train.epochs", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "last.pt: cannot be written (File too large); the previous one is kept" in line
    assert load_checkpoint(tmp_path / "run")["position"] == before
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["epoch_0001.pt", "last.pt"]
    main(["pretrain", "--resume", *run[:2], "--train.epochs", "2"])
    assert load_checkpoint(tmp_path / "run")["position"]["epoch"] == 2


def test_an_output_that_cannot_be_written(tmp_path, videos, capsys):
    (tmp_path / "file").write_text("")
    flags = [*SMALL, "--data.root", str(videos), "--method", "simclr", "--output", str(tmp_path / "file/run")]
    assert failing(capsys, "pretrain", *flags) == (
        1, f"dclr: {tmp_path}/file/run: cannot be written (Not a directory)",
    )  # fmt: skip


def test_a_lost_terminal_saves_and_leaves_no_process(tmp_path, videos):
    """SIGHUP to the run and its workers, and nowhere left to write."""
    run = tmp_path / "run"
    flags = ["--output", str(run), "--data.root", str(videos), "--method", "simclr", "--train.epochs", "100000"]
    terminal, side = os.openpty()
    command = [sys.executable, "-m", "dclr", "pretrain", *SMALL, *flags, "--data.workers", "1"]
    process = subprocess.Popen(doing_first(f"{HEED}\n{OWN_TERMINAL}", command), stdin=side, stdout=side, stderr=side)
    os.close(side)
    os.set_blocking(terminal, False)
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(run)) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            with suppress(BlockingIOError):
                os.read(terminal, 65536)  # or else it fills, and the run waits
            time.sleep(0.05)
        os.close(terminal)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    position = load_checkpoint(run)["position"]
    assert read_metrics(run)[-1]["step"] == 2 * position["epoch"] + position["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(tmp_path, videos, number):
    """The run stops within a step, has saved it, and says so; the status is the shells' 128 + signal."""
    run = tmp_path / "run"
    flags = ["--output", str(run), "--data.root", str(videos), "--method", "simclr", "--train.epochs", "100000"]
    command = [sys.executable, "-m", "dclr", "pretrain", *SMALL, *flags]
    process = subprocess.Popen(doing_first(HEED, command), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(run)) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    position = load_checkpoint(run)["position"]
    step = 2 * position["epoch"] + position["step"]
    assert f"dclr: stopped at step {step} of 200000 and saved in {run}" in err
    assert read_metrics(run)[-1]["step"] == step
