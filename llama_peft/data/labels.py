"""A label is a name. How a cell is read never depends on which other values happen to occur."""

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from math import log10
from statistics import pstdev

from llama_peft.data.cells import SEVERAL, Cells, broken, find_columns, label_columns, literal
from llama_peft.data.formats import Table
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.recipe.fields import is_number

Label = int | float | tuple[int, ...]
"""The number of a label; in regression a float; with any number of labels, the numbers of all."""
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+(?:\.[0-9]+)?|(?:\.[0-9]{3})+,[0-9]+)")
"""A number whose thousands are separated: 1,234 and 1,234.5, or 1.234,5."""
_ITEM = r"(?:[+-]?[0-9][0-9.e+-]*|True|False)"
_SPACED = re.compile(rf"""['"]\s+['"]|\s*\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]\s*""")
"""What numpy writes for a list: ['a' 'b'], which Python reads as the one label 'ab', and [1 2]."""
_WIDE = 10.0
"""Above this standard deviation, numbers are hard to learn as they are."""
_MANY = 20
"""So many rows with one label are hardly a coincidence."""
log = logging.getLogger(__name__)


def label_key(value: object) -> str:
    """Return the name by which labels are compared. It is "" for what cannot be a name.

    Equal numbers are one label: 1, 1.0, "1" and "1.0" are "1". True, "True" and "TRUE" are "true".
    A text that JSON would not read as a number is a name as it stands: "01" is a code and not 1.
    """
    if isinstance(value, float | Decimal | int) and not isinstance(value, bool):
        is_fraction = isinstance(value, float) and not value.is_integer()
        number = Decimal(repr(value)) if is_fraction else Decimal(value)
        value = f"{number:f}" if number.is_finite() else ""
    text = str(value).strip() if isinstance(value, bool | str) else ""
    if text.lower() in ("true", "false"):
        return text.lower()
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    sign, whole, fraction = found[1], found[2], (found[3] or "").rstrip("0")
    if fraction:
        return f"{sign}{whole}.{fraction}"
    return whole if whole == "0" else sign + whole


def label_names(table: Table, recipe: Recipe) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ...: the recipe's, the source's, or those in the data."""
    if not recipe.kind.names_labels:
        return ()
    column, each = find_columns(table, recipe)["label"], label_columns(recipe)
    named = recipe.dataset.labels or each or table.class_names.get(column)
    if each and named and len(named) != len(each):
        raise UserError(
            f"dataset.labels: there are {len(named)} names for the {len(each)} columns of "
            "dataset.columns.label: give one for each, in the same order, or none"
        )
    if named:
        return tuple(named)
    columns = (record.get(column) for record in table.records)
    cells = (one for cell in columns for one in _values(cell, recipe) or ())
    keys = {label_key(cell) for cell in cells if _why_not(cell) is None}
    if all(map(_NUMBER.fullmatch, keys)):
        return tuple(sorted(keys, key=Decimal))
    return tuple(sorted(keys))


def check_weights(recipe: Recipe, labels: Sequence[str]) -> None:
    """Raise UserError if the recipe gives a weight to what is not a label, or two to one label."""
    for key in ("class_weights", "pos_weight"):
        weights = getattr(recipe.train, key)
        if not isinstance(weights, Mapping):
            continue
        known, seen = {label_key(name): name for name in labels}, set[str]()
        for name in weights:
            if label_key(name) not in known:
                near = difflib.get_close_matches(name, labels, 1, cutoff=0)
                raise UserError(f"train.{key}: {name} is not a label; did you mean {near[0]}?")
            if label_key(name) in seen:
                raise UserError(f"train.{key}: {name} is there twice: keep one of them")
            seen.add(label_key(name))


def means_positions(recipe: Recipe) -> bool:
    """Return whether whole numbers in data mean the recipe's labels by their order."""
    given = recipe.dataset.label_positions
    return recipe.dataset.labels is not None if given is None else given


def has_names(table: Table, recipe: Recipe) -> bool:
    """Return whether the source itself names the classes of the column with the labels."""
    column = find_columns(table, recipe)["label"]
    return column in table.class_names and not label_columns(recipe)


def only(cell: object) -> object:
    """Return the value in a list of one, as annotation tools write one label, and None for an empty
    list. Any other cell is returned as it is.
    """
    found = chosen(cell)
    if not isinstance(found, list | tuple) or len(found) > 1 or is_spaced(cell):
        return cell
    return found[0] if found else None


def several(cell: object, separator: str) -> Sequence[object] | None:
    """Return what a cell with any number of labels names; None if it is a list that cannot be read."""
    found = chosen(cell)
    if not isinstance(cell, str):
        return found if isinstance(found, list | tuple) else [cell]
    if isinstance(found, list | tuple):
        return None if is_spaced(cell) else found
    if cell.lstrip().startswith(("[", "(")):
        return None
    return cell.split(separator) if cell.strip() else []


def is_spaced(cell: object) -> bool:
    """Return whether a text is a list of several values without commas, as numpy writes it."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "(", "{")):
        return False
    return (_SPACED.search if literal(cell) != cell else _SPACED.fullmatch)(cell) is not None


def chosen(cell: object) -> object:
    """Return a cell, or the list that it writes; Label Studio has one in {"choices": [...]}."""
    found = literal(cell) if isinstance(cell, str) else cell
    return found["choices"] if isinstance(found, dict) and [*found] == ["choices"] else found


def _values(cell: object, recipe: Recipe) -> Sequence[object] | None:
    """Return what a cell names as labels; None if it is a list that cannot be read."""
    if recipe.kind.side != "label_sets":
        return [only(cell)]
    return several(cell, recipe.dataset.label_separator)


def _why_not(cell: object) -> str | None:
    """Return why a cell alone cannot hold a class, or None if it can."""
    key = label_key(cell)
    if cell is None or cell != cell or (isinstance(cell, str) and not key):
        return "empty label"
    if broken(key):
        return "unpaired Unicode surrogate in the label"
    if is_spaced(cell) or not isinstance(
        literal(key) if key else cell, str | int | float | Decimal
    ):
        return SEVERAL
    if not key:
        return "label is neither a word nor a number"
    if "." in key and _NUMBER.fullmatch(key):
        return "label is a number and not a class: round it, or list the classes in dataset.labels"
    return None


def label_reader(cells: Cells, labels: Sequence[str], recipe: Recipe) -> Callable[[int], Label]:
    """Return the function that reads the truth of a row, as the recipe's kind of task has it."""
    if recipe.kind.side == "numbers":
        return partial(_read_number, cells, recipe.dataset.decimal)
    reader = LabelReader(cells, labels, recipe)
    if recipe.kind.side == "labels":
        return reader.read
    each = label_columns(recipe)
    return partial(_read_columns, cells, each) if each else partial(reader.read_set, recipe)


def number_key(cell: object, decimal: str) -> str:
    """Return the number in a cell as Python writes it; "" for what is not a number.

    decimal: what stands before its fraction. With a comma, a text with a point is not a number: the
    point may separate thousands.
    """
    text = "" if isinstance(cell, bool) else label_key(cell)
    if decimal == "," and isinstance(cell, str):
        text = "" if "." in text else text.replace(",", ".")
    return text if is_number(text) else ""


def has_thousands(cell: object) -> bool:
    """Return whether a text is a number whose thousands are separated, as far as it tells: in
    1,234 the comma may stand before a fraction.
    """
    return isinstance(cell, str) and _GROUPED.fullmatch(cell.strip()) is not None


def check_decimals(table: Table, recipe: Recipe) -> None:
    """Warn if the commas that the recipe says to stand before fractions seem to separate thousands."""
    if recipe.kind.side != "numbers" or recipe.dataset.decimal != ",":
        return
    column = find_columns(table, recipe)["label"]
    cells = (only(record.get(column)) for record in table.records)
    first, is_alike = "", True
    for cell in cells:
        if isinstance(cell, str) and "," in cell:
            first, is_alike = first or cell.strip(), is_alike and has_thousands(cell)
    if first and is_alike:
        log.warning(
            "%s: each comma in %s stands before three digits, and %s is read as %s: if commas "
            "separate thousands, remove them, and dataset.decimal",
            *(table.source, column, first, number_key(first, ",")),
        )


def _read_number(cells: Cells, decimal: str, row: int) -> float:
    """Return the number of a row. It is 0 if the cell is wrong, which is recorded."""
    cell = only(cells.cell(row, "label"))
    if key := number_key(cell, decimal):
        return float(key)
    empty = cell is None or cell != cell or (isinstance(cell, str) and not label_key(cell))
    fault = "empty label" if empty else "label is not a number"
    if has_thousands(cell):
        fault += ": remove the thousands separators"
    elif decimal == "." and number_key(cell, ","):
        fault += ": if it has a decimal comma, set dataset.decimal: ','"
    cells.faults.add(row, fault, None if empty else cell)
    return 0.0


def _read_columns(cells: Cells, names: Sequence[str], row: int) -> tuple[int, ...]:
    """Return the numbers of the columns that hold 1 or true."""
    found = []
    for number, name in enumerate(names):
        cell = cells.record(row).get(name)
        key = label_key(cell)
        if key not in ("0", "1", "false", "true"):
            cells.faults.add(row, f"the label {name} is neither 0 nor 1", cell)
        elif key in ("1", "true"):
            found.append(number)
    return tuple(found)


class LabelReader:
    """Reads the labels of a table as the numbers of their names."""

    def __init__(self, cells: Cells, labels: Sequence[str], recipe: Recipe) -> None:
        self.cells = cells
        self.names = labels
        self.numbers: dict[str, int] = {}
        for number, name in enumerate(labels):
            other = self.numbers.setdefault(label_key(name), number)
            if other != number:
                raise UserError(
                    f"dataset.labels: {labels[other]} and {name} are the same label: remove one"
                )
        ordered = means_positions(recipe)
        is_words = not any(map(_NUMBER.fullmatch, self.numbers))
        self.by_position = ordered and is_words
        self.missing = _missing(labels, recipe) if is_words and not ordered else ""
        """What the recipe lacks to read a number as a position."""
        own = cells.table.class_names.get(cells.columns["label"], ())
        renamed = ordered and not all(label_key(name) in self.numbers for name in own)
        self.own = labels if renamed else own
        """The names that whole numbers stand for in this source, if it has such names."""

    def read(self, row: int) -> int:
        """Return the number of a row's label. It is 0 if the cell is wrong, which is recorded."""
        cell = self.cells.cell(row, "label")
        return self._number(row, cell if self._is_name(cell) else only(cell))

    def read_set(self, recipe: Recipe, row: int) -> tuple[int, ...]:
        """Return the numbers of all labels of a row, which can have none."""
        cell = self.cells.cell(row, "label")
        values = [cell] if self._is_name(cell) else _values(cell, recipe)
        if values is None:
            self.cells.faults.add(row, "label is not a list in JSON or Python", cell)
        return tuple(sorted({self._number(row, value) for value in values or ()}))

    def _is_name(self, cell: object) -> bool:
        """Return whether a text that also writes a list is a label as it stands."""
        return isinstance(cell, str) and cell != chosen(cell) and label_key(cell) in self.numbers

    def _number(self, row: int, cell: object) -> int:
        key = label_key(cell)
        position = int(key) if re.fullmatch("[0-9]{1,9}", key) else -1
        is_own = bool(self.own) and isinstance(cell, int) and not isinstance(cell, bool)
        if is_own and position in range(len(self.own)):
            cell = self.own[position]
            key = label_key(cell)
        elif is_own:
            key, cell = "", str(cell)
        if key in self.numbers:
            return self.numbers[key]
        if self.by_position and position in range(len(self.numbers)):
            return position
        self.cells.faults.add(row, self._fault(cell), cell if str(cell).strip() else None)
        return 0

    def _fault(self, cell: object) -> str:
        if (why := _why_not(cell)) is not None:
            return why
        if label_key(cell) == "-1":
            return (
                "label -1 is not a class here: it often means that a row has no label, as in the "
                "hidden test parts of GLUE"
            )
        if (self.by_position or self.own) and _NUMBER.fullmatch(label_key(cell)):
            return f"label out of range 0 to {len(self.numbers) - 1}"
        listed = f"{', '.join(self.names[:10])}{', ...' if len(self.names) > 10 else ''}"
        position = re.fullmatch("[0-9]{1,9}", label_key(cell))
        is_known = position is None or int(position[0]) >= len(self.names)
        return f"label is not one of {listed}{'' if is_known else self.missing}"


def _missing(labels: Sequence[str], recipe: Recipe) -> str:
    """Return what to do if numbers in a file mean labels whose order nothing gives."""
    key = "labels in this order" if recipe.dataset.labels is None else "label_positions: true"
    first = ", ".join(f"{number} is {name}" for number, name in enumerate(labels[:2]))
    return f", and nothing says that {first}: if that is so, set dataset.{key}"


def check_labels(
    found: Sequence[Label], labels: Sequence[str], source: str, recipe: Recipe
) -> None:
    """Refuse labels of a train part that teach nothing, and verbalizers that do not fit them."""
    used = {*found}
    if recipe.kind.side == "label_sets" and len(labels) < 2:
        raise UserError(
            f"{source}: there is only one label ({', '.join(labels)}): name two or more in "
            "dataset.labels, or use dataset.single_label: true with the classes yes and no"
        )
    if len(used) < 2:
        label = used.pop()
        shown = labels[label] if isinstance(label, int) else _listed(label, labels)
        raise UserError(
            f"{source}: all {len(found)} rows to train on have one label "
            f"({shown}): there is nothing to learn"
        )
    verbalizers = recipe.prompt.verbalizers if recipe.kind.side == "labels" else None
    if verbalizers is not None and len(verbalizers) != len(labels):
        raise UserError(
            f"prompt.verbalizers: there are {len(verbalizers)} verbalizers for the {len(labels)} "
            f"labels of {source} ({', '.join(labels[:10])})"
        )


def check_scale(found: Sequence[Label], source: str) -> None:
    """Warn if the numbers to learn are far apart: a head starts near 0 and moves in small steps."""
    numbers = [float(one) for one in found if isinstance(one, float)]
    spread = pstdev(numbers) if numbers else 0.0
    if spread > _WIDE:
        power = 10 ** round(log10(spread))
        log.warning(
            "%s: the numbers to learn have a standard deviation of %.4g, which takes a head many "
            "steps to reach: divide them, for example by %g, so that it is about 1",
            *(source, spread, power),
        )


def check_hidden(
    found: Sequence[Label], labels: Sequence[str], source: str, recipe: Recipe
) -> None:
    """Raise UserError if all numbers are -1; warn if many examples all have one label."""
    if len(found) < _MANY or len({*found}) > 1:
        return
    label = found[0]
    shown = labels[label] if isinstance(label, int) else _listed(label, labels)
    message = (
        f"{source}: all {len(found)} rows have one label ({shown}): hidden test parts of benchmarks "
        "look so (those of GLUE have -1), and then scores mean nothing: name a part with labels"
    )
    if recipe.kind.side == "numbers" and label == -1:
        raise UserError(message)
    log.warning(message)


def _listed(label: float | tuple[int, ...], labels: Sequence[str]) -> str:
    if isinstance(label, tuple):
        return ", ".join(labels[number] for number in label) or "none"
    return f"{label:g}"
