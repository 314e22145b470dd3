"""Lists of videos and their labels: csv with or without a header, or text lines `path label`."""

import csv
import json
from pathlib import Path
from typing import Any

PATH_COLUMNS = ("path", "video", "video_path", "filename", "file")
MAX_CLASSES = 100_000


class DatasetError(ValueError):
    """A dataset that cannot be used as asked: says what was looked for, and where."""


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks at their ends. Raises `DatasetError`."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text: {error}") from error
    return [line.strip() for line in content.splitlines() if line.strip()]


def fields(path: Path, count: int) -> list[list[str]]:
    """The `count` blank-separated fields of each line; the first may hold blanks. Raises `DatasetError`."""
    rows = [line.rsplit(None, count - 1) for line in lines(path)]
    for row in rows:
        if len(row) != count:
            raise DatasetError(f"{path}: {' '.join(row)!r} does not have {count} fields")
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `DatasetError`."""
    try:
        return json.loads("\n".join(lines(path)))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a list by column; without a header the columns are `path` and `label`.

    Forms: csv with a header that has a path column or `youtube_id`; csv `path,label`; lines `path label` or
    `path frame_count label`. Raises `DatasetError`.
    """
    content = lines(path)
    if not content:
        raise DatasetError(f"{path} is empty")
    if path.suffix != ".csv" or "," not in content[0]:
        return [_plain_row(line, path) for line in content]
    table = [[cell.strip() for cell in row] for row in csv.reader(content)]
    header = table[0]
    path_column = next((column for column in PATH_COLUMNS if column in header), None)
    if path_column is None and "youtube_id" not in header:
        return [{"path": row[0], "label": row[-1]} for row in table]
    for number, row in enumerate(table[1:], start=2):
        if len(row) != len(header):
            raise DatasetError(f"{path}, row {number}: {len(row)} columns, but the header has {len(header)}")
    if len(table) == 1:
        raise DatasetError(f"{path} has a header, but no row")
    header = ["path" if column == path_column else column for column in header]
    return [dict(zip(header, row)) for row in table[1:]]


def _plain_row(line: str, path: Path) -> dict[str, str]:
    words = line.rsplit(None, 2)
    if len(words) == 3 and not words[1].isdigit():
        words = line.rsplit(None, 1)
    if len(words) < 2:
        raise DatasetError(f"{path}: {line!r} is not of the form `path label`")
    return {"path": words[0], "label": words[-1]}


def require(row: dict, columns: tuple[str, ...], source: Path) -> None:
    """Raises `DatasetError` where a row lacks one of the columns."""
    for column in columns:
        if column not in row:
            raise DatasetError(f"{source} has no column {column!r}; it has {', '.join(row)}")


def encode(
    values: list[str], source: Path, classes: tuple[str, ...] | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Labels as class numbers, and the classes (default: the sorted names).

    Whole numbers stand for themselves; an empty value is -1, unknown. Raises `DatasetError` for a label that
    `classes` does not have, or a number from `MAX_CLASSES` on.
    """
    known = {value for value in values if value}
    if all(value.removeprefix("-").isdecimal() for value in known):
        largest = max(map(int, known), default=-1)
        if not classes and largest >= MAX_CLASSES:
            raise DatasetError(f"{source}: label '{largest}' is no class number: expected at most {MAX_CLASSES - 1}")
        classes = classes or tuple(str(number) for number in range(largest + 1))
        numbers = {value: int(value) for value in known if -1 <= int(value) < len(classes)}
    else:
        classes = classes or tuple(sorted(known))
        numbers = {name: number for number, name in enumerate(classes)}
    strange = sorted(known - numbers.keys())
    if strange:
        raise DatasetError(f"{source}: label {strange[0]!r} is not among the {len(classes)} classes")
    return [numbers.get(value, -1) for value in values], classes


def select(rows: list[dict[str, str]], where: str, source: Path) -> list[int]:
    """The numbers of the rows that meet every condition of `where` ("column=value,column=value")."""
    conditions = [part.partition("=")[::2] for part in where.split(",") if part.strip()]
    conditions = [(column.strip(), value.strip()) for column, value in conditions]
    for column, value in conditions:
        if not column or not value:
            raise DatasetError(f"where={where!r} is not of the form column=value")
        require(rows[0], (column,), source)
    return [i for i, row in enumerate(rows) if all(row[column] == value for column, value in conditions)]
