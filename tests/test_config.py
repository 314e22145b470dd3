"""Configurations: YAML round trip, overlays, and what is wrong with a wrong one."""

import ast
import dataclasses
import errno
import inspect
import itertools
import os
import textwrap
from typing import Generic

import pytest

from dclr.commands.demo import DemoConfig
from dclr.config import (
    ConfigError,
    DataConfig,
    OptimConfig,
    PretrainConfig,
    TrainConfig,
    load,
    save,
    to_dict,
    update,
)  # fmt: skip
from dclr.methods import METHODS, DCLRConfig, SimCLRConfig
from dclr.methods.dclr import AlignmentConfig, LossWeights
from dclr.methods.search import SearchConfig
from dclr.presets import PRESETS
from dclr.suggest import did_you_mean


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(tmp_path, name):
    config = PRESETS[name]()
    save(config, tmp_path / "config.yaml", torch="2.13")
    assert load(tmp_path / "config.yaml") == config


def test_everything_survives_yaml(tmp_path):
    config = PretrainConfig(
        output="runs/ä \udcff b", encoder="c3d",
        data=DataConfig("folder", "/x y", annotations="a.csv", label="motion", where="set=1", scale=(0.5, 1.0),
                        cache="memory", allow_missing=True),
        optim=OptimConfig("adamw", 3e-4, milestones=(), schedule="cosine", warmup=7),
        train=TrainConfig(epochs=3, batch=12, accumulate=3, precision="bf16", compile="default", threads=2),
        method=DCLRConfig(losses=LossWeights(1, 0, 0.5, 2), search=SearchConfig(on=("s", "d")),
                          alignment=AlignmentConfig(0.1)),
    )  # fmt: skip
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert to_dict(config)["method"]["alignment"]["lambda"] == 0.1


def test_the_demo_preset_takes_the_videos_of_the_demo():
    made = DemoConfig()
    assert PRESETS["demo"]().data.root == f"{made.output}/videos_{made.seeds[0]}"


def test_a_disk_that_fills_leaves_the_configuration_as_it_was(tmp_path, monkeypatch):
    save(PretrainConfig(output="before"), tmp_path / "config.yaml")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"config\.yaml: cannot be written \(No space left"):
        save(PretrainConfig(output="after"), tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml").output == "before"


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_file_overlays_a_preset(tmp_path):
    path = written(tmp_path, "optim: {lr: 1e-3}\nmethod: {temperature: 1, search: {k: 10}}\ndata: {scale: [0.5, 1]}\n")
    config = load(path, PRESETS["dclr_k400"]())
    assert (config.optim.lr, config.method.temperature, config.method.search.k) == (0.001, 1.0, 10)
    assert (config.method.search.queue, config.train.epochs) == (16384, 100)
    assert config.data.scale == (0.5, 1.0)
    assert load(written(tmp_path, "")) == PretrainConfig()


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "train: {epochs: 3}")
    assert load("~/run.yaml").train.epochs == 3


@pytest.mark.parametrize("key", ["on", "'on'"])
def test_a_key_that_yaml_reads_as_true(tmp_path, key):
    assert load(written(tmp_path, f"method: {{search: {{{key}: [s, d]}}}}")).method.search.on == ("s", "d")


def test_a_file_can_name_another_method(tmp_path):
    config = load(written(tmp_path, "method: {name: simclr, temperature: 0.2}"), PRESETS["dclr_k400"]())
    assert isinstance(config.method, SimCLRConfig) and config.method.temperature == 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", r"unknown configuration key optim\.lrr; did you mean lr\?"),
        ("trian: {}", "unknown configuration key trian; did you mean train"),
        ("method: {search: {qeue: 5}}", r"unknown configuration key method\.search\.qeue; did you mean queue"),
        ("method: {name: smclr}", "unknown method smclr; did you mean simclr"),
        ("train: {epochs: many}", r"train\.epochs: got 'many', expected int"),
        ("train: {epochs: 2.5}", r"train\.epochs: got 2\.5, expected int"),
        ("train: {epochs: true}", r"train\.epochs: got True, expected int"),
        ("optim: {lr: fast}", r"optim\.lr: got 'fast', expected float"),
        ("train: {device: tpu}", r"train\.device: got 'tpu', expected one of auto, cpu, cuda"),
        ("data: {scale: 0.5}", r"data\.scale: got 0\.5, expected 2 values"),
        ("data: 5", "data: got 5, expected keys and values"),
        ("- a", "got list, expected keys and values"),
        ("[" * 20000, r"run\.yaml: cannot be read as a configuration: it is nested too deeply"),
        ("train: {seed: 18446744073709551616}", r"train\.seed: got 18446744073709551616, expected less than 2\^64"),
        ("a: [", r"run\.yaml: cannot be read as a configuration"),
        ("train: {epochs: 0}", r"train\.epochs: got 0, expected at least 1"),
        ("train: {batch: 10, accumulate: 3}", r"train\.accumulate: got 3, expected a divisor of train\.batch 10"),
        ("optim: {lr: -1}", r"optim\.lr: got -1\.0"),
        ("optim: {lr: .nan}", r"optim\.lr: got nan"),
        ("optim: {milestones: [60, 80]}", r"optim\.milestones: got \(60\.0, 80\.0\), expected shares"),
        ("data: {scale: [0.5, 0.2]}", r"data\.scale: got \(0\.5, 0\.2\)"),
        ("data: {ratio: [0, 1]}", r"data\.ratio: got \(0\.0, 1\.0\), expected two aspect ratios"),
        ("data: {ratio: [2, 1]}", r"data\.ratio: got \(2\.0, 1\.0\)"),
        ("method: {temperature: 0}", r"method\.temperature: got 0\.0"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load(tmp_path / "none.yaml")


def configurations(kind):
    """A configuration's class and those of its fields."""
    yield kind
    for field in dataclasses.fields(kind):
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(value):
            yield from configurations(type(value))


@pytest.mark.parametrize("kind", [PretrainConfig, *(config for config, _ in METHODS.values())])
def test_every_field_has_a_line_of_help(kind):
    for part in configurations(kind):
        documented = set()
        for base in part.__mro__[:-1]:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body if base is not Generic else []
            for here, after in itertools.pairwise(body):
                if isinstance(here, ast.AnnAssign) and isinstance(after, ast.Expr):
                    documented.add(here.target.id)
        missing = {field.name for field in dataclasses.fields(part)} - documented
        assert not missing, f"{part.__name__}: {missing}"


def test_update_leaves_its_argument():
    config = PretrainConfig()
    update(config, {"train": {"epochs": 3}})
    assert config == PretrainConfig()


def test_nearest():
    assert did_you_mean("ucf1O1", ["ucf101", "hmdb51"]) == "; did you mean ucf101?"
    assert did_you_mean("xyz", ["ucf101", "hmdb51"]) == "; expected one of ucf101, hmdb51"
