"""Labels as class numbers."""

import difflib
import re
from collections.abc import Callable, Sequence

from dclr.data.lists import DatasetError

MAX_CLASSES = 100_000
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
DECIMAL = re.compile(r"[+-]?\d+(\.\d*)?")


def encode_labels(
    values: Sequence[str], place: Callable[[int], str], classes: tuple[str, ...] | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Labels as class numbers, and the classes: by default the sorted names, or as many as the largest number asks for.

    Whole numbers, "2" or "2.0", stand for themselves; an empty value and -1 are -1, unknown.

    place: where value i stands, for errors. classes: the names of all classes, where they are known.

    Raises `DatasetError` for a label that `classes` does not have, or a number from `MAX_CLASSES` on.
    """
    known = set(values) - {""}
    if known and all(map(WHOLE.fullmatch, known)):
        count = len(classes) if classes else MAX_CLASSES
        # Python refuses to read thousands of digits, and no class has that number.
        numbers = {value: int(value.partition(".")[0]) for value in known if len(value) < 20}
        numbers = {value: number for value, number in numbers.items() if -1 <= number < count}
        expected, names = f"a class number from 0 to {count - 1}, or -1 for unknown", ()
        classes = classes or tuple(map(str, range(max(numbers.values(), default=-1) + 1)))
    else:
        if not classes:
            classes = tuple(sorted(known, key=float if all(map(DECIMAL.fullmatch, known)) else None))
        numbers = {name: number for number, name in enumerate(classes)}
        expected, names = f"one of the {len(classes)} classes", classes
    numbers[""] = -1
    if not known <= numbers.keys():
        row, strange = next((row, value) for row, value in enumerate(values) if value not in numbers)
        shown = strange if len(strange) < 60 else f"{strange[:40]}... ({len(strange)} characters)"
        close = difflib.get_close_matches(strange, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"{place(row)}: label {shown!r} is not {expected}{hint}")
    return [numbers[value] for value in values], classes
