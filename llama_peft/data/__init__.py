"""Data: from files, the Hub, the generator or Python objects to examples in parts."""

from llama_peft.data.answers import Answer
from llama_peft.data.cells import broken, literal
from llama_peft.data.dataset import (
    TRAINED_ON,
    Dataset,
    known_labels,
    load,
    load_file,
    load_inputs,
    mark_given,
    read_once,
    settled,
    with_fields,
)
from llama_peft.data.examples import Example, FieldsExample, Inputs, QuestionExample, TextExample
from llama_peft.data.fingerprint import (
    asked_sum,
    asked_sums,
    content_sum,
    record_pieces,
    record_text,
    split_ids,
    split_pieces,
    split_sum,
    split_text,
)
from llama_peft.data.formats import Table
from llama_peft.data.labels import Label, label_key
from llama_peft.data.sources.parts import PARTS
from llama_peft.data.sources.places import is_file_name, is_url
from llama_peft.data.sources.python import Rows

__all__ = [
    "PARTS",
    "TRAINED_ON",
    "Answer",
    "Dataset",
    "Example",
    "FieldsExample",
    "Inputs",
    "Label",
    "QuestionExample",
    "Rows",
    "Table",
    "TextExample",
    "asked_sum",
    "asked_sums",
    "broken",
    "content_sum",
    "is_file_name",
    "is_url",
    "known_labels",
    "label_key",
    "literal",
    "load",
    "load_file",
    "load_inputs",
    "mark_given",
    "read_once",
    "record_pieces",
    "record_text",
    "settled",
    "split_ids",
    "split_pieces",
    "split_sum",
    "split_text",
    "with_fields",
]
