"""Features: against a plain loop over clips, and the encoder as it was afterwards."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from dclr.data import VideoDataset, VideoError
from dclr.data.clips import Sample
from dclr.evaluation import Encoding, extract_features, linear_probe
from dclr.models import build_encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clips(Dataset):
    """Videos of three clips, made from their index; the `broken` ones cannot be read."""

    def __init__(self, videos=7, broken=()):
        self.broken = broken
        paths, labels = zip(*((f"{index}.avi", index % 3) for index in range(videos))) if videos else ((), ())
        self.dataset = VideoDataset("clips", paths, labels, ("0", "1", "2"))

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        clips = torch.randint(256, (3, 4, 16, 18, 3), generator=generator, dtype=torch.uint8)
        if index in self.broken:
            return Sample(clips, -1, -1, (VideoError(f"{index}.avi", "truncated"),))
        return Sample(clips, index, self.dataset.labels[index])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_encoder("r2plus1d_tiny", widths=(4, 5, 6, 8))


def extract(encoder, dataset=None, **options):
    dataset = Clips() if dataset is None else dataset
    options = {"progress": False, **options}
    return extract_features(Encoding(encoder, "cpu", MEAN, STD), dataset, **options)


def test_equals_one_clip_at_a_time(encoder):
    features = extract(encoder)
    assert features.clips.shape == (7, 3, 8) and features.clips.dtype == torch.float32
    assert features.labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and features.labels.dtype == torch.int64
    encoder.eval()
    for video in range(7):
        for n, clip_thwc in enumerate(Clips()[video].clips):
            frames_cthw = clip_thwc.permute(3, 0, 1, 2).double() / 255
            x = torch.stack([(frames_cthw[c] - MEAN[c]) / STD[c] for c in range(3)])
            expected = encoder(x[None].float()).mean((2, 3, 4))[0]
            torch.testing.assert_close(features.clips[video, n], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"batch_videos": 1}, {"batch_videos": 100}, {"workers": 2}])
def test_independent_of_batches_and_workers(encoder, options):
    expected, features = extract(encoder), extract(encoder, **options)
    torch.testing.assert_close(features.clips, expected.clips, rtol=1e-4, atol=1e-6)
    assert torch.equal(features.labels, expected.labels)


def test_encoder_is_as_it_was(encoder):
    encoder.train()
    encoder.layer1.eval()
    modes = [module.training for module in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    generator_state = torch.get_rng_state()
    extract(encoder)
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


class Broken(nn.Module):
    """Not finite where the clip's video has index 5; `error` raises instead."""

    def __init__(self, error=False):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x):
        if self.error:
            raise RuntimeError("out of memory")
        self.calls += 1
        return x / 0 if self.calls == 6 else x


def test_modes_are_restored_after_an_error():
    encoder = Broken(error=True).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(encoder)
    assert encoder.training


def test_features_that_are_not_finite_name_the_video():
    with pytest.raises(ValueError, match="features of video 5 are not finite"):
        extract(Broken(), batch_videos=1)


def test_unreadable_videos_are_left_out_and_named(encoder):
    every = extract(encoder)
    # With one video a batch, a batch can be empty.
    for batch_videos in (1, 4):
        dataset = Clips(broken=(1, 5))
        features = extract(encoder, dataset, batch_videos=batch_videos, max_failures=0.3)
        kept = [0, 2, 3, 4, 6]
        assert torch.equal(features.labels, every.labels[kept])
        assert features.paths == tuple(f"{index}.avi" for index in kept)
        torch.testing.assert_close(features.clips, every.clips[kept], rtol=1e-4, atol=1e-6)
        assert [str(failure) for failure in features.failures] == ["1.avi: truncated", "5.avi: truncated"]


@pytest.mark.parametrize("broken, max_failures", [((1,), 0.01), ((1, 5), 0.2), (range(7), 1.0)])
def test_too_many_unreadable_videos(encoder, broken, max_failures):
    message = f"{len(broken)} of 7 videos could not be read.*1.avi: truncated"
    with pytest.raises(ValueError, match=message):
        extract(encoder, Clips(broken=broken), max_failures=max_failures)


def test_empty_dataset():
    with pytest.raises(ValueError, match="no videos"):
        extract(Broken(), Clips(0))


def test_progress_bar(encoder, capfd):
    extract(encoder, progress=True)
    assert "features" in capfd.readouterr().err
    extract(encoder)
    assert capfd.readouterr().err == ""


def test_features_can_be_trained_on(encoder):
    features = extract(encoder)
    assert not features.clips.is_inference() and not features.labels.is_inference()
    assert linear_probe(features, features).figures["top1"] > 0
