"""The guide through a training step names what is there."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from .guides import REPOSITORY, text_of

SECTIONS = re.findall(r"^## \d+\. `(.*?)`\n(.*?)(?=^## |\Z)", text_of("training_step"), re.DOTALL | re.MULTILINE)


def names_of(path: Path) -> set[str]:
    """Functions, classes, methods and tables of a file, and its classes' fields."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "words"), SECTIONS, ids=[file for file, _ in SECTIONS])
def test_a_section_names_what_is_there(file, words):
    """The first name is in the section's file; the others are in it or in another that the guide names."""
    text = text_of("training_step")
    anywhere = set().union(*(names_of(REPOSITORY / path) for path in re.findall(r"`(dclr/[\w/]+\.py)`", text)))
    first, *others = re.findall(r"`([A-Za-z_.]+)`", words)
    assert first in names_of(REPOSITORY / file)
    assert set(others) <= anywhere
    assert len(words.strip().splitlines()) <= 12, "a file has ten lines, or so"


def imported_by(path: Path) -> set[str]:
    """Files that a file imports, anywhere in it; the command line finds a verb's file by the verb's name."""
    text = path.read_text(encoding="utf-8")
    found = {match.replace(".", "/") for match in re.findall(r"(?:from|import) (dclr[\w.]*)", text)}
    found |= {f"dclr/commands/{verb}" for verb in re.findall(r'_command\("(\w+)"\)', text)}
    return {f"{name}.py" for name in found} | {f"{name}/__init__.py" for name in found}


@pytest.mark.parametrize(("start", "least"), [("- DCLR Eq. 10", 5), ("- The normalisation", 3)])
def test_a_short_cut_leads_from_file_to_file(start, least):
    """Each file of the way imports the next one, or is the package that the next one belongs to."""
    line = text_of("training_step").partition(start)[2].partition("\n- ")[0].partition("\n\n")[0]
    way = [REPOSITORY / path for path in re.findall(r"`(dclr/[\w/]+\.py)`", line)]
    assert len(way) == least
    for here, there in pairwise(way):
        next_file = str(there.relative_to(REPOSITORY))
        by_package = f"{Path(next_file).parent}/__init__.py"
        assert {next_file, by_package} & imported_by(here), f"{here} does not lead to {next_file}"
    end = way[-1].read_text(encoding="utf-8")
    assert "(DCLR Eq. 10)" in end or "def _normalize" in end
