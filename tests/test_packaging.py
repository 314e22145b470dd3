"""What is installed, and where it can be imported."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_the_kernels_inside_the_package(tmp_path):
    source = tmp_path / "a path with spaces"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("dclr", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", tmp_path, source], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("dclr-*.whl"))).namelist()
    there = {"dclr/kernels/__init__.py", "dclr/kernels/info_nce/forward.py", "dclr/methods/dclr.py", "dclr/py.typed"}
    assert there <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dclr"}


def test_import_without_triton():
    """As on macOS: the references serve, and the whole package imports."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import dclr.cli, dclr.kernels
x = torch.eye(4, requires_grad=True)
dclr.kernels.info_nce(x, x.detach().roll(1, 0)).backward()
assert x.grad.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_kernels_stand_alone():
    """Imports run one way: `kernels/` knows nothing of the rest of dclr."""
    for path in (ROOT / "kernels").rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import dclr", "from dclr")):
                assert line.startswith("from dclr.kernels"), f"{path.name}: {line}"


def test_the_package_and_its_help_import_nothing_heavy():
    """`import dclr` and `dclr --help` answer at once: torch alone takes seconds."""
    code = """
import sys
from dclr.cli import main
main(["--help"])
heavy = {"torch", "numpy", "tyro", "matplotlib", "av"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent, stdout=subprocess.DEVNULL)


def test_public_names_are_there():
    import dclr

    for name in dclr.__all__:
        assert callable(getattr(dclr, name)), name


def test_a_name_means_one_thing():
    """No function or class at the top of a module has the name of another one, in all of `dclr/` and `kernels/`."""
    where = {}
    for path in sorted([*(ROOT / "dclr").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            # Ops have their fakes under `_`.
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in ("_", "main"):
                where.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    assert {name: sorted(files) for name, files in where.items() if len(files) > 1} == {}
