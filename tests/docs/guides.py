"""The guides as the tests read them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[2]
GUIDES = REPOSITORY / "docs" / "guides"


def text_of(guide: str) -> str:
    return (GUIDES / f"{guide}.md").read_text(encoding="utf-8")


def blocks_of(guide: str, language: str = "python") -> list[str]:
    """The guide's code blocks in a language; "" for command lines."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(guide), re.DOTALL | re.MULTILINE)
    return [code for marked, code in found if marked == language]


def module_of(code: str, path: Path) -> ModuleType:
    """The code as a file at `path`, imported: classes and kernels look for their source there."""
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
