"""Corrections of a user, kept as rows that the run's own recipe could train on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llama_peft.data.cells import label_columns
from llama_peft.errors import UserError
from llama_peft.run_folder.run import Run
from llama_peft.system.files import append

FEEDBACK = "feedback.jsonl"


def fields_of(run: Run) -> tuple[str, ...]:
    """Return the columns that the run reads: one or several texts, or a question and its passage."""
    columns = run.recipe.dataset.columns
    if run.recipe.kind.has_labels:
        return tuple(run.recipe.prompt.fields) or (columns.names("text")[0],)
    return tuple(columns.names(key)[0] for key in ("question", "context") if columns.names(key))


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Where the corrections of a run go."""

    run: Run
    place: Path

    def keep(self, given: Mapping[str, str], right: object) -> dict[str, object]:
        """Add one row and return it: the columns of the recipe, with what would have been right.

        given: each of the run's fields. right: a label, a list of labels, a number, or an answer; ""
        means that the passage has no answer. Raises UserError if it is none of these.
        """
        fields = fields_of(self.run)
        if set(given) != set(fields) or not all(isinstance(one, str) for one in given.values()):
            raise UserError(f"a correction needs the text of {', '.join(fields)}")
        row = {**given, **self._truth(right, list(given.values())[-1])}
        with append(self.place.parent, self.place.name) as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return row

    def _truth(self, right: object, passage: str) -> dict[str, object]:
        """Return the columns of what is right, as the recipe's data have it."""
        recipe, labels = self.run.recipe, self.run.labels
        kind, columns = recipe.kind, recipe.dataset.columns
        if kind.side == "answers":
            if not isinstance(right, str):
                raise UserError("the right answer is a text; an empty one means that there is none")
            if kind.finds_spans and right not in passage:
                raise UserError(
                    "this run finds answers in the passage, and the right one is not there"
                )
            return {columns.names("answers")[0]: [right] if right else []}
        name = columns.names("label")[0]
        if kind.side == "numbers":
            if isinstance(right, bool) or not isinstance(right, int | float):
                raise UserError("the right answer is a number")
            return {name: right}
        chosen = right if isinstance(right, list) else [right]
        if not all(one in labels for one in chosen) or (kind.side == "labels" and len(chosen) != 1):
            raise UserError(f"the right answer is of the labels {', '.join(labels)}")
        if each := label_columns(recipe):
            return {one: int(one in chosen) for one in each}
        return {name: chosen if kind.side == "label_sets" else chosen[0]}
