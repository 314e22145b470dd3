"""Lists of videos and their labels as tables: csv of any delimiter with or without a header, or lines `path label`."""

import csv
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dclr.data.folders import VIDEO_SUFFIXES, has_video_suffix, simple_name

# Names of columns in the order in which they are believed; case and punctuation do not count.
PATH_NAMES = (
    *("path", "videopath", "clippath", "filepath", "filename", "file", "video", "clip", "videofile", "videoname"),
    *("clipname", "vidname", "name", "videoid", "clipid", "vid", "id", "youtubeid"),
)
LABEL_NAMES = (
    *("label", "class", "labels", "classname", "category", "action", "target"),
    *("labelname", "labelid", "classid", "classindex", "cls"),
)
SPLIT_NAMES = ("split", "subset", "partition", "set")

# Captions are longer than the 128 KiB that Python's reader allows by itself.
MAX_CELL = 2**31 - 1
# `path`, `path label` or `path frames label`, where the path ends as a video does and may hold blanks.
VIDEO_LINE = re.compile(
    rf"(?P<path>.*(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))(?:\s+\d+(?=\s))?(?:\s+(?P<label>.+))?",
    re.IGNORECASE,
)


class DatasetError(ValueError):
    """A dataset that cannot be used as asked: says what was looked for, and where."""


@dataclass(frozen=True)
class Table:
    """The rows of a list, by column.

    source: the file.
    columns: name -> cells, as many as there are rows.
    numbers: each row's number in the file, from 1, header and blank rows counted.
    """

    source: Path
    columns: dict[str, list[str]]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, column: str) -> list[str]:
        """The cells of a column. Raises `DatasetError` where there is none of that name."""
        found = column if column in self.columns else self.known([simple_name(column)])
        if found is None:
            raise DatasetError(f"{self.source} has no column {column!r}; it has {', '.join(self.columns)}")
        return self.columns[found]

    def known(self, names: Sequence[str]) -> str | None:
        """The first column that goes by one of the names, whatever its case and punctuation."""
        by_name = {simple_name(column): column for column in reversed(self.columns)}
        return next((by_name[name] for name in names if name in by_name), None)

    @property
    def paths(self) -> list[str]:
        """The cells of the column that names the videos: of those known by name, one of video files if there is."""
        of_videos = [column for column, cells in self.columns.items() if has_video_suffix(cells[0])]
        known = [column for column in (self.known([name]) for name in PATH_NAMES) if column]
        candidates = [*(column for column in known if column in of_videos), *of_videos, *known]
        if not candidates:
            raise DatasetError(f"{self.source} has no column of paths; it has {', '.join(self.columns)}")
        return self.columns[candidates[0]]

    def place(self, row: int, column: str | None = None) -> str:
        """Where a cell stands in the file, in words."""
        return f"{self.source}, row {self.numbers[row]}" + (f", column {column!r}" if column else "")

    def where(self, conditions: str) -> list[int]:
        """The rows that meet every one of the conditions "column=value,column=value". Raises `DatasetError`."""
        rows = list(range(len(self)))
        for part in filter(str.strip, conditions.split(",")):
            column, _, value = map(str.strip, part.partition("="))
            if not column or not value:
                raise DatasetError(f"where={conditions!r} is not of the form column=value")
            cells = self[column]
            rows = [row for row in rows if cells[row] == value]
        return rows


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8. Raises `DatasetError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text in UTF-8: {error}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, by number from 1, without blanks at their ends."""
    # Not str.splitlines: a name may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if line.strip():
            yield number, line.strip()


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks at their ends. Raises `DatasetError`."""
    return [line for _, line in numbered_lines(path)]


def fields(path: Path, count: int) -> list[list[str]]:
    """The `count` blank-separated fields of each line; the first may hold blanks. Raises `DatasetError`."""
    rows = []
    for number, line in numbered_lines(path):
        rows.append(line.rsplit(None, count - 1))
        if len(rows[-1]) != count:
            raise DatasetError(f"{path}, row {number}: {line!r} does not have {count} fields")
    return rows


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file, which is of the `kind`, list or dict. Raises `DatasetError`."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise DatasetError(f"{path}: expected a {kind.__name__}, got a {type(content).__name__}")
    return content


def read_records(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list of objects that have the `keys`. Raises `DatasetError`."""
    records = read_json(path, list)
    for number, record in enumerate(records, start=1):
        lacking = [key for key in keys if not isinstance(record, dict) or key not in record]
        if lacking:
            raise DatasetError(f"{path}, entry {number}: has no {lacking[0]!r}; expected {', '.join(keys)}")
    return records


def read_table(path: Path) -> Table:
    """The rows of a list. Raises `DatasetError`.

    Forms: csv with commas, tabs or semicolons, whose first row is a header where one of its names is known for paths,
    or where the second row names a video and the first does not; csv without a header; lines `path label`,
    `path frame_count label`, or `path` alone. Without a header the columns are `path` and, the last one, `label`.
    """
    text = read_text(path)
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), None)
    if first is None:
        raise DatasetError(f"{path} is empty")
    limit = csv.field_size_limit(MAX_CELL)
    try:
        delimiter = _delimiter(first, path)
        return _read_lines(path) if delimiter is None else _read_csv(path, text, delimiter)
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as csv: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _delimiter(first: str, path: Path) -> str | None:
    """What separates the cells of a csv; None for lines of blank-separated fields."""
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    for delimiter in "\t,;":
        cells = _cells(next(csv.reader([first], delimiter=delimiter, skipinitialspace=True)))
        named = any(simple_name(cell) in PATH_NAMES for cell in cells)
        if len(cells) > 1 and (is_csv or named or has_video_suffix(cells[0])):
            return delimiter
    # One column of quoted cells, or under a header.
    return "," if is_csv and (first.lstrip().startswith('"') or simple_name(first) in PATH_NAMES) else None


def _read_csv(path: Path, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    records = ((number, _cells(row)) for number, row in enumerate(reader, start=1) if row)
    head = list(islice(records, 2))
    names = [*head[0][1]]
    while len(names) > 1 and not names[-1]:
        names.pop()
    is_header = not any(map(has_video_suffix, names)) and (
        any(simple_name(name) in PATH_NAMES for name in names) or any(map(has_video_suffix, head[-1][1]))
    )
    if is_header and len(head) == 1:
        raise DatasetError(f"{path} has a header, but no row")
    names = _header(path, names) if is_header else _default_names(names)
    columns: list[list[str]] = [[] for _ in names]
    numbers = array("L")
    for number, row in chain(head[1:] if is_header else head, records):
        if len(row) < len(names) or any(row[len(names) :]):
            what = "header" if is_header else "first row"
            raise DatasetError(f"{path}, row {number}: {len(row)} columns, but the {what} has {len(names)}")
        numbers.append(number)
        for cells, cell in zip(columns, row):
            cells.append(cell)
    return Table(path, dict(zip(names, columns)), numbers)


def _cells(row: list[str]) -> list[str]:
    return [cell.strip() for cell in row]


def _header(path: Path, names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}, row 1: two columns are named {twice!r}")
    return names


def _default_names(first: list[str]) -> list[str]:
    """Names for the columns of a csv without header: the videos are in the first, or where the first row names one."""
    names = [f"column {number}" for number in range(1, len(first) + 1)]
    place = next((number for number, cell in enumerate(first) if has_video_suffix(cell)), 0)
    others = [number for number in range(len(first)) if number != place]
    names[place] = "path"
    if others:
        names[others[-1]] = "label"
    return names


def _read_lines(path: Path) -> Table:
    columns: dict[str, list[str]] = {"path": [], "label": []}
    numbers = array("L")
    for number, line in numbered_lines(path):
        video = VIDEO_LINE.fullmatch(line)
        words = line.rsplit(None, 2)
        if len(words) == 3 and not words[1].isdigit():
            words = line.rsplit(None, 1)
        numbers.append(number)
        columns["path"].append(video["path"] if video else words[0])
        columns["label"].append((video["label"] or "") if video else words[-1] if len(words) > 1 else "")
    return Table(path, columns, numbers)
