"""Exported encoders: the way back gives the same features, the file says what it is, and errors name it."""

import json
import sys

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dclr
from dclr.cli import main
from dclr.commands.export import _FORMATS, ExportConfig, export
from dclr.config import ConfigError, PretrainConfig, to_dict, update
from dclr.data.synth import SynthConfig, synthesize
from dclr.methods import build_method
from dclr.models import build_encoder, load_encoder
from dclr.training import append_metrics, load_method, save_checkpoint

DATA = {"frames": 8, "stride": 4, "size": 32}


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
    augment = {"mean": [0.5, 0.25, 0.125], "std": [0.2, 0.3, 0.4]}
    return save_run(tmp_path_factory.mktemp("run"), "r2plus1d_tiny", data=DATA, augment=augment)


@pytest.fixture(scope="module")
def exported(run):
    return export(ExportConfig(str(run)))


@pytest.mark.parametrize("name", ["r2plus1d_tiny", "r2plus1d_vcop", "mc3_18", "s3dg"])
def test_the_way_back_gives_the_same_features(tmp_path, name):
    path = export(ExportConfig(str(save_run(tmp_path, name, data=DATA))))
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


CLIPS = torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["r2plus1d_tiny", "vit_tiny"])
def test_torch_export(tmp_path, name):
    save_run(tmp_path, name, data=DATA)
    path = export(ExportConfig(str(tmp_path), format="torch_export"))
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert path.name == "encoder.pt2" and metadata["encoder"] == name and json.loads(metadata["std"])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(CLIPS), load_encoder(tmp_path)(CLIPS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["r2plus1d_tiny", "vit_tiny"])
def test_onnx(tmp_path, name):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    save_run(tmp_path, name, data=DATA)
    path = export(ExportConfig(str(tmp_path), format="onnx"))
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert path.name == "encoder.onnx" and metadata["encoder"] == name and metadata["frames"] == "8"
    (found,) = onnxruntime.InferenceSession(path).run(None, {"clips": CLIPS.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), load_encoder(tmp_path)(CLIPS), rtol=1e-4, atol=1e-4)


def test_onnx_says_what_it_needs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"format: onnx needs onnxruntime, .* pip install dclr\[onnx\]"):
        export(ExportConfig(str(run), format="onnx"))


def test_what_differs_is_not_written(run, tmp_path, monkeypatch):
    def wrong(encoder, clips, metadata):
        return b"x", lambda clips: encoder(clips) + 1e-2

    monkeypatch.setitem(_FORMATS, "torch_export", wrong)
    with pytest.raises(RuntimeError, match="features of 1 clips are not the checkpoint's"):
        export(ExportConfig(str(run), str(tmp_path / "x.pt2"), format="torch_export"))
    assert not list(tmp_path.iterdir())


def test_card(run, tmp_path):
    record = {"evaluation": "knn", "top1": 41.5, "chance": {"top1": 12.5}, "protocol": "by hand", "epoch": 3}
    append_metrics(run / "knn_folder", record)
    path = export(ExportConfig(str(run), str(tmp_path / "x.safetensors"), card=True))
    card = path.with_suffix(".md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "dclr"
    for part in ("# r2plus1d_tiny, simclr", "top1 41.50 (chance 12.50)", "1. by hand", "8 frames, every 4", "Cost: "):
        assert part in card


def test_weights_of_others_are_exported(tmp_path):
    torch.save(build_encoder("r2plus1d_tiny").state_dict(), tmp_path / "w.pt")
    path = export(ExportConfig(f"dualvar:{tmp_path}/w.pt", card=True))
    assert path == tmp_path / "encoder.safetensors" and load_encoder(path).preprocessing.stride == 4
    assert "Weights of others: 144 tensors of r2plus1d_tiny" in path.with_suffix(".md").read_text()


def test_hub(run, tmp_path):
    pytest.importorskip("huggingface_hub")
    from dclr.models.hub import HubEncoder

    HubEncoder.of(str(run)).save_pretrained(tmp_path / "hub")
    found = HubEncoder.from_pretrained(tmp_path / "hub")
    assert found.preprocessing == load_encoder(run).preprocessing
    with torch.no_grad():
        assert torch.equal(found(CLIPS), load_encoder(run)(CLIPS))


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
