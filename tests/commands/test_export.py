"""Exported encoders: the way back gives the same features, the file says what it is, and errors name it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dclr
from dclr.cli import main
from dclr.commands.export import ExportConfig, export
from dclr.config import PretrainConfig, to_dict, update
from dclr.data.synth import SynthConfig, synthesize
from dclr.methods import build_method
from dclr.models import build_encoder, load_encoder
from dclr.training import load_method, save_checkpoint


def save_run(folder, encoder, **values):
    """A run folder with a checkpoint at epoch 3, whose batch statistics are not those of the beginning."""
    config = update(PretrainConfig(), {"encoder": encoder, "method": {"name": "simclr"}, **values})
    torch.manual_seed(0)
    method = build_method(config.method, build_encoder(encoder), config.augment)
    with torch.no_grad():
        method.encoder.train()(torch.randn(2, 3, 8, 32, 32))
    state = {"config": to_dict(config), "method": method.state_dict(), "position": {"epoch": 3, "step": 0}}
    save_checkpoint(folder / "checkpoints" / "last.pt", state)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = {"frames": 8, "stride": 4, "size": 32}
    augment = {"mean": [0.5, 0.25, 0.125], "std": [0.2, 0.3, 0.4]}
    return save_run(tmp_path_factory.mktemp("run"), "r2plus1d_tiny", data=data, augment=augment)


@pytest.fixture(scope="module")
def exported(run):
    return export(ExportConfig(str(run)))


@pytest.mark.parametrize("name", ["r2plus1d_tiny", "r2plus1d_vcop", "mc3_18", "s3dg"])
def test_the_way_back_gives_the_same_features(tmp_path, name):
    path = export(ExportConfig(str(save_run(tmp_path, name))))
    expected = load_method(tmp_path).encoder.eval()
    encoder = load_encoder(path)
    assert not encoder.training and encoder.feature_dim == expected.feature_dim
    clips = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(clips), expected(clips))
    state, saved = expected.state_dict(), load_file(path)
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[key], state[key]) and saved[key].dtype == state[key].dtype for key in state)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_metadata(run, exported):
    assert exported == run / "encoder.safetensors"
    with safe_open(exported, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata.pop("config"))
    assert config == to_dict(load_method(run).config) and config["data"]["stride"] == 4
    assert json.loads(metadata.pop("mean")) == [0.5, 0.25, 0.125]
    assert json.loads(metadata.pop("std")) == [0.2, 0.3, 0.4]
    assert metadata == {
        "encoder": "r2plus1d_tiny",
        "feature_dim": "96",
        "frames": "8",
        "stride": "4",
        "size": "32",
        "epoch": "3",
        "method": "simclr",
        "dclr": dclr.__version__,
    }


def test_output_is_replaced_in_one_piece(run, exported, tmp_path, capsys):
    path = tmp_path / "new" / "encoder.safetensors"
    for _ in range(2):
        assert export(ExportConfig(str(run / "checkpoints" / "last.pt"), str(path))) == path
        assert load_file(path).keys() == load_file(exported).keys()
        assert [file.name for file in path.parent.iterdir()] == ["encoder.safetensors"]
    assert f"{path}: r2plus1d_tiny, 96 features, 3 epochs" in capsys.readouterr().out


def test_an_output_that_is_no_export_is_not_touched(run):
    checkpoint = run / "checkpoints" / "last.pt"
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"output: got .*last.pt, expected a file \*.safetensors"):
        export(ExportConfig(str(run), str(checkpoint)))
    assert checkpoint.read_bytes() == before


def test_an_output_that_cannot_be_written(run, tmp_path):
    path = tmp_path / "folder.safetensors"
    path.mkdir()
    with pytest.raises(OSError, match=r"folder.safetensors: cannot be written \(Is a directory\)"):
        export(ExportConfig(str(run), str(path)))
    assert [file.name for file in tmp_path.iterdir()] == ["folder.safetensors"]


def changed(exported, path, metadata=None, **tensors):
    """A copy of an export with other metadata, or with tensors replaced, or left out where None."""
    with safe_open(exported, "pt") as file:
        kept = file.metadata()
    state = {key: value for key, value in {**load_file(exported), **tensors}.items() if value is not None}
    save_file(state, path, kept if metadata is None else metadata)
    return path


WEIGHT = "stem.0.0.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({WEIGHT: None}, rf"nearest is r2plus1d_tiny, but 1 of its 120 .* first {WEIGHT}: got nothing, expected \("),
        ({WEIGHT: torch.zeros(2, 3)}, rf"first {WEIGHT}: got \(2, 3\), expected \("),
        ({"metadata": {"encoder": "r3d_18"}}, "none of its 144 tensors is one of r3d_18"),
        ({"metadata": {"encoder": "resnet50"}}, "of the encoder 'resnet50', expected one of r2plus1d_"),
    ],
)
def test_files_of_other_tensors_or_metadata(exported, tmp_path, change, message):
    path = changed(exported, tmp_path / "other.safetensors", **change)
    with pytest.raises(ValueError, match=f"other.safetensors: .*{message}"):
        load_encoder(path)


def test_a_file_without_metadata_is_recognised(exported, tmp_path):
    save_file(load_file(exported), tmp_path / "bare.safetensors")
    encoder, expected = load_encoder(tmp_path / "bare.safetensors"), load_encoder(exported)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert encoder.preprocessing.stride == 2 and expected.preprocessing.stride == 4


def test_files_that_cannot_be_read(exported, tmp_path):
    truncated = tmp_path / "truncated"
    truncated.write_bytes(exported.read_bytes()[:-100])
    (tmp_path / "empty").write_bytes(b"")
    for path in (truncated, tmp_path / "empty"):
        with pytest.raises(ValueError, match=f"{path.name}: truncated, or "):
            load_encoder(path)
    with pytest.raises(OSError, match="none: cannot be read"):
        load_encoder(tmp_path / "none")
    with pytest.raises(OSError, match=r"checkpoints/last.pt: cannot be read"):
        load_encoder(tmp_path)


def test_command(tmp_path, capsys):
    run, root = tmp_path / "run", tmp_path / "videos"
    synthesize(root, SynthConfig(train=9, test=8, size=16, frames=8, objects=2), progress=False)
    main(["pretrain", "--encoder", "r2plus1d_tiny", "--method.search.queue", "64", "--data.dataset", "folder",
          "--data.root", str(root), "--data.label", "motion", "--data.frames", "4", "--data.stride", "1",
          "--data.size", "16", "--data.workers", "0", "--train.batch", "4", "--train.epochs", "1",
          "--train.device", "cpu", "--train.no-tensorboard", "--output", str(run)])  # fmt: skip
    capsys.readouterr()
    main(["export", "--checkpoint", str(run)])
    path = run / "encoder.safetensors"
    assert capsys.readouterr().out.strip() == f"{path}: r2plus1d_tiny, 96 features, 1 epochs"
    clips = torch.randn(1, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_encoder(path)(clips), load_method(run).encoder.eval()(clips))
    with safe_open(path, "pt") as file:
        assert file.metadata()["method"] == "dclr"
    for argv, message in (
        (["export"], "dclr: --checkpoint is required"),
        (["export", "--checkpoint", str(run), "--outptu", "x"], "unknown argument '--outptu'; did you mean --output?"),
        (["export", "--checkpoint", str(run / "none.pt")], "none.pt: cannot be read (No such file or directory)"),
        (["export", "--checkpoint", str(run), "--output", "x.pt"], "output: got x.pt, expected a file *.safetensors"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
