"""Weights of others: torchvision's outputs, the released checkpoints' names, and files that give no encoder."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dclr.models import ENCODERS, WeightsError, build_encoder, load_encoder, read_encoder
from dclr.models.weights import SOURCES, recognise
from tests.models.others import C3D, I3D, S3D, VCOP, TorchvisionVideoResNet


def randomized(module):
    """With norms that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            for values in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(values, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.eval()


def assert_equal_outputs(encoder, other, size=(1, 3, 8, 32, 36)):
    clip = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(encoder(clip), other(clip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_torchvision(name, tmp_path):
    """The published architecture, saved as torchvision's files are."""
    torch.manual_seed(0)
    other = randomized(TorchvisionVideoResNet(name))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    found = read_encoder(f"torchvision:{tmp_path}/other.pth")
    assert found.name == name and f"of {name}; 2 others left out" in found.matched
    assert found.preprocessing.mean == (0.43216, 0.394666, 0.37645) and not found.encoder.training
    assert_equal_outputs(found.encoder, other.features)


def r2plus1d(blocks):
    return TorchvisionVideoResNet("r2plus1d_18", blocks).features


@pytest.mark.parametrize(
    "source, build, name, prefix, entry",
    [
        ("dualvar", lambda: VCOP("r2plus1d"), "r2plus1d_vcop", "module.encoder_q.0.", "state_dict"),
        ("dualvar", lambda: VCOP("r3d"), "r3d_vcop", "module.encoder_q.0.", "state_dict"),
        ("dualvar", C3D, "c3d", "encoder_q.0.", "state_dict"),
        ("dualvar", lambda: S3D(gated=True), "s3dg", "module.backbone.", "state_dict"),
        ("dualvar", lambda: S3D(gated=False), "s3d", "backbone.", "model"),
        ("fame", I3D, "i3d", "module.encoder_q.", "state_dict"),
        ("videomoco", lambda: r2plus1d(2), "r2plus1d_18", "module.encoder_q.", "state_dict"),
        ("dclr_release", lambda: r2plus1d(1), "r2plus1d_tv1111", "module.encoder_q.", "state_dict"),
    ],
)
def test_released_checkpoints_by_their_names(source, build, name, prefix, entry, tmp_path):
    torch.manual_seed(0)
    other = randomized(build())
    state = {prefix + key: value for key, value in other.state_dict().items()}
    # The encoder that follows it is not what is wanted.
    behind = {key.replace("encoder_q", "encoder_k"): torch.zeros_like(value) for key, value in state.items()}
    extra = {f"{prefix}fc.0.weight": torch.zeros(2, 2), "module.queue": torch.zeros(3)}
    content = {
        "epoch": 200,
        "arch": "x",
        entry: {**{key: value for key, value in behind.items() if key not in state}, **state, **extra},
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "released.pth.tar")
    found = read_encoder(f"{source}:{tmp_path}/released.pth.tar")
    assert found.name == name and f"below {prefix.removeprefix('module.').rstrip('.')}" in found.matched
    expected = SOURCES[source]
    assert (found.preprocessing.frames, found.preprocessing.stride) == (expected.frames, expected.stride)
    assert found.preprocessing.size == (224 if name == "i3d" else 112)
    assert_equal_outputs(found.encoder, other)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_recognised(name):
    with torch.device("meta"):
        state = build_encoder(name).state_dict()
    zeros = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    found, tensors, matched = recognise(Path("bare.pt"), zeros)
    assert found == name and tensors.keys() == state.keys() and matched.endswith("0 others left out")


def test_bare_tensors_as_safetensors(tmp_path):
    save_file(tiny(), tmp_path / "bare.safetensors")
    found = read_encoder(tmp_path / "bare.safetensors")
    assert found.name == "r2plus1d_tiny" and not found.about
    save_file({f"encoder.{key}": value for key, value in tiny().items()}, tmp_path / "prefixed")
    assert read_encoder(tmp_path / "prefixed").name == "r2plus1d_tiny"


def tiny(**changes):
    state = build_encoder("r2plus1d_tiny").state_dict()
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


WEIGHT = "stem.0.0.weight"


@pytest.mark.parametrize(
    "content, message",
    [
        (tiny(**{WEIGHT: None}), f"nearest is r2plus1d_tiny, but 1 of its 120 .* first {WEIGHT}: got nothing"),
        (tiny(**{WEIGHT: torch.zeros(2, 3)}), rf"first {WEIGHT}: got \(2, 3\), expected \(3"),
        (tiny(**{WEIGHT: tiny()[WEIGHT].to(torch.int8)}), f"{WEIGHT} is of torch.int8, expected floating point"),
        (tiny(**{WEIGHT: tiny()[WEIGHT] * torch.nan}), f"{WEIGHT} has values that are NaN or infinite"),
        ({"fc.weight": torch.zeros(2, 2)}, "none of its 1 tensors is one of r2plus1d_vcop, "),
        ({"step": 3}, "holds no tensors by name"),
        ([torch.zeros(2)], "holds list, expected tensors by name"),
    ],
)
def test_files_that_give_no_encoder(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=f"weights.pt: .*{message}"):
        load_encoder(tmp_path / "weights.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, (Evil.folder,)


def test_no_code_is_run(tmp_path):
    Evil.folder = str(tmp_path / "ran")
    torch.save({**tiny(), "evil": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(
        WeightsError, match=r"weights.pt: holds code \((posix|nt).mkdir\) besides weights; it is not run"
    ):
        load_encoder(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_damage_is_found(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(tiny(), path)
    good = path.read_bytes()
    for place in np.linspace(2000, len(good) - 4000, 7).astype(int):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(WeightsError, match=r"damaged|truncated"):
            load_encoder(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(WeightsError, match="truncated, or damaged: it is not what was saved"):
        load_encoder(path)


def test_half_precision_and_old_files_without_counts_load(tmp_path):
    state = {key: value.half() for key, value in tiny().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pt")
    encoder = load_encoder(tmp_path / "weights.pt")
    assert encoder.stem[0][0].weight.dtype == torch.float32
    assert torch.equal(encoder.stem[0][0].weight, state[WEIGHT].float())


def test_pretraining_starts_from_them(tmp_path):
    from dclr.commands.pretrain import pretrain
    from dclr.config import ConfigError, DataConfig, OptimConfig, PretrainConfig, TrainConfig
    from dclr.data.synth import SynthConfig, synthesize
    from dclr.methods import SimCLRConfig
    from dclr.training import load_method

    synthesize(
        tmp_path / "videos", SynthConfig(train=6, test=1, size=16, frames=8, objects=2, object_size=5), progress=False
    )
    state = tiny()
    torch.save({"state_dict": {f"module.encoder_q.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    config = PretrainConfig(
        str(tmp_path / "run"),
        "r2plus1d_tiny",
        encoder_weights=str(tmp_path / "w.pt"),
        data=DataConfig("folder", str(tmp_path / "videos"), label="motion", frames=4, stride=1, size=16, workers=0),
        optim=OptimConfig(lr=1e-30, weight_decay=0),
        train=TrainConfig(epochs=1, batch=4, device="cpu", tensorboard=False),
        method=SimCLRConfig(),
    )
    found = load_method(pretrain(config)).encoder
    for name, value in found.named_parameters():
        torch.testing.assert_close(value, state[name])
    os.remove(tmp_path / "w.pt")
    config.train.epochs = 2
    pretrain(config, resume=True)
    with pytest.raises(WeightsError, match=r"w.pt: none of its 144 tensors is one of r3d_18"):
        torch.save(state, tmp_path / "w.pt")
        pretrain(replace(config, encoder="r3d_18", output=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"encoder_weights: got .*w.pt, expected none with an encoder of your own"):
        pretrain(replace(config, output=str(tmp_path / "own")), encoder=build_encoder("r2plus1d_tiny"))
