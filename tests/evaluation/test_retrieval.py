"""Retrieval: worked example by hand, an independent float64 formula, and the properties of R@k."""

import numpy as np
import pytest
import torch

from dclr.evaluation import nearest, retrieval

GALLERY = torch.tensor([[1, 0], [0.9, 0.5], [0, 1], [-1, 0.2]])
GALLERY_LABELS = torch.tensor([0, 1, 1, 0])
QUERY = torch.tensor([[1, 0.2], [0, 1]])
QUERY_LABELS = torch.tensor([0, 1])


def random_features(videos, seed, clips=3, dim=7, classes=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(videos, clips, dim, generator=generator)
    return features, torch.randint(classes, (videos,), generator=generator)


@pytest.mark.parametrize(
    "center, order, similarities",
    [
        (
            "per_split",
            [[0, 1, 3, 2], [2, 3, 1, 0]],
            [[0.985049, 0.707107, -0.655169, -0.866291], [0.866291, 0.655169, -0.707107, -0.985049]],
        ),
        (
            "none",
            [[0, 1, 2, 3], [2, 1, 3, 0]],
            [[0.980581, 0.952424, 0.196116, -0.923077], [1.0, 0.485643, 0.196116, 0.0]],
        ),
    ],
)
def test_worked_example(center, order, similarities):
    values, indices = nearest(GALLERY.double(), QUERY.double(), 4, clip_l2=False, center=center)
    assert indices.tolist() == order
    np.testing.assert_allclose(values.numpy(), similarities, atol=5e-7)
    found = retrieval(GALLERY, GALLERY_LABELS, QUERY, QUERY_LABELS, clip_l2=False, center=center)
    assert found["R@1"] == 100.0


@pytest.mark.parametrize("center", ["per_split", "train", "none"])
@pytest.mark.parametrize("clip_l2", [True, False])
def test_equals_the_formula(center, clip_l2):
    gallery, gallery_labels = random_features(37, seed=1)
    query, query_labels = random_features(300, seed=2)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    g, q = (x.numpy().astype(np.float64) for x in (gallery, query))
    g, q = ((unit(x) if clip_l2 else x).mean(1) for x in (g, q))
    shift = {"per_split": (g.mean(0), q.mean(0)), "train": (g.mean(0), g.mean(0)), "none": (0, 0)}[center]
    similarity = unit(q - shift[1]) @ unit(g - shift[0]).T
    order = np.argsort(-similarity, axis=1)
    same = gallery_labels.numpy()[order] == query_labels.numpy()[:, None]

    result = retrieval(gallery, gallery_labels, query, query_labels, (1, 2, 5), clip_l2, center)
    for k in (1, 2, 5):
        assert result[f"R@{k}"] == pytest.approx(100 * same[:, :k].any(1).mean(), abs=1e-9)
    values, indices = nearest(gallery, query, 37, clip_l2=clip_l2, center=center)
    assert (indices.numpy() == order).all()
    np.testing.assert_allclose(values.numpy(), np.take_along_axis(similarity, order, 1), atol=1e-12)


def test_recall_grows_with_k_and_ends_with_the_whole_gallery():
    gallery, query = random_features(40, seed=3), random_features(25, seed=4)
    result = retrieval(*gallery, *query)
    recalls = [result[f"R@{k}"] for k in (1, 5, 10, 20, 50)]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1] == 100.0


def test_retrieving_from_itself_is_perfect():
    features, _ = random_features(30, seed=5)
    assert retrieval(features, torch.arange(30), features, torch.arange(30))["R@1"] == 100.0


def test_ties_go_to_the_lower_index():
    # Long enough for sorts that are not stable to show it.
    gallery = torch.eye(2)[torch.arange(101) % 2]
    _, indices = nearest(gallery, torch.tensor([[2.0, 0.0]]).expand(300, 2), 101, center="none")
    assert (indices == torch.cat([torch.arange(0, 101, 2), torch.arange(1, 101, 2)])).all()


def test_zero_features_have_similarity_zero():
    values, _ = nearest(torch.zeros(3, 2, 4), torch.ones(1, 2, 4), 3, center="none")
    assert values.tolist() == [[0.0, 0.0, 0.0]]


def test_strides_and_dtypes():
    gallery, gallery_labels = random_features(20, seed=6)
    query, query_labels = random_features(9, seed=7)
    expected = retrieval(gallery, gallery_labels, query, query_labels)
    strided = gallery.transpose(0, 2).contiguous().transpose(0, 2)
    assert retrieval(strided, gallery_labels, query.double(), query_labels) == expected


CENTERED = [("per_split", "transductive"), ("train", "gallery's mean"), ("none", "not centred")]


@pytest.mark.parametrize("center, words", CENTERED)
def test_protocol_says_what_was_done(center, words):
    gallery, query = random_features(12, seed=8), random_features(5, seed=9)
    protocol = retrieval(*gallery, *query, center=center)["protocol"]
    for part in (words, "3 clips", "12 training videos", "5 test videos", "each l2-normalised"):
        assert part in protocol
    assert "each l2" not in retrieval(*gallery, *query, clip_l2=False)["protocol"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gallery_labels": torch.zeros(3, dtype=torch.int64)}, r"gallery_labels must be \(4,\)"),
        ({"query_labels": torch.tensor([0, -1])}, "query_labels must be class indices, got -1"),
        ({"query": torch.zeros(2, 5)}, "query has 5 features a clip, gallery 2"),
        ({"query": torch.zeros(0, 2), "query_labels": torch.zeros(0, dtype=torch.int64)}, "query must be"),
        ({"ks": (0, 1)}, "ks must be positive"),
        ({"center": "both"}, "center must be one of per_split, train, none"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "gallery": GALLERY,
        "gallery_labels": GALLERY_LABELS,
        "query": QUERY,
        "query_labels": QUERY_LABELS,
    }
    with pytest.raises(ValueError, match=message):
        retrieval(**{**arguments, **change})
