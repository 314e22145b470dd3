"""A few generated videos, and the run folder of an encoder as it was initialised."""

import shutil

import pytest
import torch

from dclr.config import PretrainConfig, to_dict, update
from dclr.data.synth import SynthConfig, synthesize
from dclr.evaluation import features
from dclr.evaluation.dataset import EvaluationDataConfig
from dclr.methods import build_method
from dclr.models import build_encoder
from dclr.training import save_checkpoint

CLIPS = 2


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Eighteen videos to train on and eleven to test."""
    root = tmp_path_factory.mktemp("videos")
    synthesize(root, SynthConfig(train=18, test=11, size=16, frames=8, objects=2, object_size=5), progress=False)
    return root


def save_run(folder, seed=0, **data):
    """A checkpoint of a small encoder, freshly initialised."""
    data = {"dataset": "folder", "label": "motion", "frames": 4, "stride": 1, "size": 16, **data}
    values = {"encoder": "r2plus1d_tiny", "data": data, "method": {"name": "simclr"}}
    config = update(PretrainConfig(), values)
    torch.manual_seed(seed)
    method = build_method(config.method, build_encoder(config.encoder), config.augment)
    state = {"config": to_dict(config), "method": method.state_dict(), "position": {"epoch": 3, "step": 0}}
    save_checkpoint(folder / "checkpoints" / "last.pt", state)
    return folder


@pytest.fixture
def run(tmp_path, videos):
    return save_run(tmp_path / "run", root=str(videos))


@pytest.fixture
def data():
    return EvaluationDataConfig(clips=CLIPS, workers=0, batch_videos=3)


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of clips that the encoder saw, one a forward pass."""
    seen, pooled = [], features._pooled

    def counted(encoder, clips, *arguments):
        seen.append(clips.shape[0] * clips.shape[1])
        return pooled(encoder, clips, *arguments)

    monkeypatch.setattr(features, "_pooled", counted)
    return seen


@pytest.fixture
def ucf(tmp_path, videos):
    """The videos as three splits of UCF-101's form, with two classes."""
    root = tmp_path / "ucf"
    files = sorted((videos / "videos").glob("*.mp4"))[:24]
    names = []
    for number, file in enumerate(files):
        name = f"{('Apply', 'Brush')[number % 2]}/v_{number:02d}.mp4"
        (root / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, root / "UCF-101" / name)
        names.append(name)
    (root / "classInd.txt").write_text("1 Apply\n2 Brush\n")
    for split in (1, 2, 3):
        test = names[6 * split - 6 : 6 * split]
        (root / f"testlist0{split}.txt").write_text("".join(f"{name}\n" for name in test))
        train = [f"{name} {1 + (name[0] == 'B')}\n" for name in names if name not in test]
        (root / f"trainlist0{split}.txt").write_text("".join(train))
    return root
