"""`dclr.embed`: the features that an evaluation has of the video."""

import numpy as np
import pytest
import torch

import dclr
from dclr.commands.extract import ExtractConfig, extract
from dclr.data import VideoError
from tests.evaluation.conftest import data, run, videos  # noqa: F401


def test_equals_the_features_of_extract(run, data, capsys):  # noqa: F811
    found = np.load(extract(ExtractConfig(str(run), device="cpu", data=data)) / "test.npz")
    for row in (0, 7):
        features = dclr.embed(found["paths"][row], run, clips=2, device="cpu")
        assert features.shape == (2, 96) and features.dtype == torch.float32 and not features.is_inference()
        np.testing.assert_allclose(features.numpy(), found["clips"][row], rtol=1e-4, atol=1e-6)
    encoder = dclr.load_encoder(run)
    assert torch.equal(dclr.embed(found["paths"][7], encoder, clips=2, device="cpu"), features)
    seen = encoder.preprocessing
    assert (seen.frames, seen.stride, seen.size, seen.mean[0]) == (4, 1, 16, 0.485)
    assert dclr.embed(found["paths"][7], run, device="cpu").shape == (10, 96)


def test_what_cannot_be_embedded(run, tmp_path):  # noqa: F811
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name in ("broken.mp4", "none.mp4"):
        with pytest.raises(VideoError, match=name):
            dclr.embed(tmp_path / name, run, device="cpu")
    with pytest.raises(ValueError, match="has no `preprocessing`, expected one of load_encoder"):
        dclr.embed(tmp_path / "broken.mp4", torch.nn.Identity(), device="cpu")
