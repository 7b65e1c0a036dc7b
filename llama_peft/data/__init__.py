"""From any source to examples in parts."""

from llama_peft.data.dataset import (
    PARTS,
    RECORD,
    SPLIT_SUM,
    TRAINED_ON,
    Dataset,
    asked_sum,
    asked_sums,
    content_sum,
    known_labels,
    load,
    load_file,
    record_text,
    split_ids,
    split_sum,
    split_text,
)
from llama_peft.data.examples import Answer, Example, QuestionExample, TextExample, broken
from llama_peft.data.sources import is_file_name

__all__ = [
    "PARTS",
    "RECORD",
    "SPLIT_SUM",
    "TRAINED_ON",
    "Answer",
    "Dataset",
    "Example",
    "QuestionExample",
    "TextExample",
    "asked_sum",
    "asked_sums",
    "broken",
    "content_sum",
    "is_file_name",
    "known_labels",
    "load",
    "load_file",
    "record_text",
    "split_ids",
    "split_sum",
    "split_text",
]
