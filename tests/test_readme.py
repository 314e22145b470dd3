"""What README and docs say: every command is one that exists, every example runs, every link leads somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

import dclr.commands.visualize
import dclr.kernels
from dclr.cli import VERBS, run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
KERNELS = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", KERNELS, re.DOTALL)
FUNCTIONS = [name for name in dclr.kernels.__all__ if name.islower()]
# Scripts that are a verb, and those whose first word says how.
SCRIPTS = {f"scripts/{verb}.sh": verb for verb in ("pretrain", "finetune", "linear", "retrieve")}


def commands():
    """Page and line of every command in a block of shell."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.partition(" #")[0].split(" && "):
                    if command.strip():
                        yield pytest.param(command.strip(), id=f"{page.stem}: {command.strip()}")


@pytest.mark.parametrize("command", commands())
def test_command_is_one_that_exists(command, monkeypatch, tmp_path):
    words = shlex.split(command)
    if words[0] in ("bash", "sbatch", "pytest", "python") and "-m" not in words:
        assert (ROOT / words[1]).is_file()
    if words[0] == "bash" and words[1] in SCRIPTS:
        words = ["dclr", SCRIPTS[words[1]], *words[2:]] if len(words) > 2 else []
    elif words[:2] == ["bash", "scripts/profile.sh"]:
        words = ["dclr", "profile", *words[3:]]
    if words and words[0] == "dclr":
        assert called_with(words[1:], monkeypatch, tmp_path)
    else:
        assert not words or words[0] in ("bash", "sbatch", "pytest", "python", "python3", "mkdocs", ".venv/bin/ruff")


def called_with(argv, monkeypatch, tmp_path):
    """Whether the command line, read in an empty folder, comes to the call of its verb."""
    calls = []
    module = importlib.import_module(f"dclr.commands.{VERBS[argv[0]].module}")
    monkeypatch.setattr(dclr.commands.visualize, "visualize", lambda config: None)
    monkeypatch.setattr(module, argv[0], lambda *config, **options: calls.append(config))
    monkeypatch.chdir(tmp_path)
    run(argv)
    return calls or "--list-presets" in argv


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
        assert f"\n**{name}** `" in KERNELS
        assert any(f"{name}(" in example for example in EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_readme_is_short_and_says_how_to_test():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "bash scripts/test.sh" in text and "bash scripts/pretrain.sh " in text


def test_the_site_has_every_page_and_the_api_every_name():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(_pages(site["nav"]))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, attribute = re.sub(r"^kernels\.", "dclr.kernels.", name).rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def _pages(entry):
    """The files that an entry of the site's contents leads to."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in _pages(value)]
