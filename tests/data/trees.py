"""Folders of empty files, which are videos to whoever only lists them."""

from pathlib import Path

from dclr.data import VideoDataset


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_rows(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}\r\n" for row in rows).encode())
    return path


def names_of(dataset: VideoDataset, root: Path) -> list[str]:
    return [path.removeprefix(f"{root}/") for path in dataset.paths]
