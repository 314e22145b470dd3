"""The examples of the README's kernel section run, and there is one of each function."""

import re
from pathlib import Path

import pytest

import dclr.kernels

TEXT = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("\n## A kernel alone\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
FUNCTIONS = [name for name in dclr.kernels.__all__ if name.islower()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.splitlines()[1].split()[-1])
def test_example_runs_and_prints_what_it_says(example, capsys):
    assert len(example.splitlines()) == 5
    exec(example, {})
    printed, said = capsys.readouterr().out, example.rpartition("#")[2]
    for word in re.findall(r"\w+", said):
        assert word in re.findall(r"\w+", printed)


def test_every_function_has_its_example():
    assert len(EXAMPLES) == len(FUNCTIONS)
    for name in FUNCTIONS:
        assert f"\n**{name}** `" in SECTION
        assert any(f"{name}(" in example for example in EXAMPLES)
