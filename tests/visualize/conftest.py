import csv
import shutil

import pytest

from dclr.commands.evaluate import RetrieveConfig, retrieve
from dclr.commands.pretrain import pretrain
from dclr.config import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from dclr.data.synth import LABELS_FILE, SynthConfig, synthesize
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import SimCLRConfig

# A class whose name would be markup, or a formula of the drawing library, if it were not quoted.
STRANGE = "<b>& $x"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Generated videos, of which one class has a strange name."""
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=10, test=9, size=20, frames=10, objects=3), progress=False)
    with open(root / LABELS_FILE, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(root / LABELS_FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "motion": STRANGE if row["motion"] == "right" else row["motion"]} for row in rows)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory, videos):
    """A finished run with one evaluation; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(
        PretrainConfig(
            output=str(folder),
            encoder="r2plus1d_tiny",
            data=DataConfig(
                dataset="folder", root=str(videos), label="motion", frames=4, stride=1, size=20, workers=0
            ),
            optim=OptimConfig(lr=0.01),
            train=TrainConfig(epochs=2, batch=4, log_every=1, device="cpu", tensorboard=False),
            method=SimCLRConfig(dim=8, hidden=8),
        )
    )  # fmt: skip
    retrieve(RetrieveConfig(str(folder), device="cpu", data=EvaluationDataConfig(clips=2, workers=0)))
    return folder


@pytest.fixture
def run(tmp_path, trained):
    """A copy of that run, to write to."""
    return shutil.copytree(trained, tmp_path / "run")
