"""The kinds of task: one row each, data only.

What differs between tasks and is a word, a number or a name stands here once. What differs in
behaviour is decided in two places: where training starts (`training/setup.py`) and where a
predictor is opened (`inference/predict.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Task = Literal["classification", "extractive_qa", "generative_qa"]


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """One kind of task."""

    name: Task
    columns: tuple[str, ...]
    """The columns of `dataset.columns` that every row needs."""
    head: str | None
    """The module name of the head, the one that transformers uses; None for the language model's
    own head.
    """
    head_outputs: int | None
    """Outputs of the head; None is one for each label."""
    head_bias: bool
    library_class: str
    """What follows `AutoModelFor` and `AutoPeftModelFor` in the names of transformers and PEFT."""
    peft_task_type: str
    """LoraConfig's `task_type`."""
    label_keys: tuple[str, ...]
    """The keys of a batch that hold what is learned."""
    packs_prefix_trees: bool
    """Whether `train.packing: prefix_tree` works: the answers must follow the shared text."""
    caches_features: bool
    """Whether a head alone can train on states that are computed once; a span head's would be too
    large.
    """
    fits_threshold: bool
    """Whether "no answer" is decided by a threshold that is fitted on validation."""
    tuned_name: str
    """What tables call a tuned model."""
    pipeline_tag: str
    """The Hub's name of the task."""
    purpose: str
    """For the card: what the trained weights do."""
    snippet: str
    """For the card: how plain transformers uses the model on `{inputs}`."""

    @property
    def has_labels(self) -> bool:
        """Whether an example is a text with a label; else it is a question on a passage."""
        return "label" in self.columns

    @property
    def finds_spans(self) -> bool:
        """Whether an answer is a piece of the passage, which a head finds; else answers are written
        token by token.
        """
        return self.head is not None and not self.has_labels

    def head_size(self, hidden: int, num_labels: int) -> int:
        """Parameters of the head on states of size `hidden`."""
        if self.head is None:
            return 0
        outputs = num_labels if self.head_outputs is None else self.head_outputs
        return outputs * (hidden + self.head_bias)


_QUESTION = ("question", "context", "answers")
_ROWS = (
    TaskKind(
        name="classification",
        columns=("text", "label"),
        head="score",
        head_outputs=None,
        head_bias=False,
        library_class="SequenceClassification",
        peft_task_type="SEQ_CLS",
        label_keys=("labels",),
        packs_prefix_trees=False,
        caches_features=True,
        fits_threshold=False,
        tuned_name="classification head",
        pipeline_tag="text-classification",
        purpose="that classifies texts",
        snippet="scores = model({inputs}).logits.softmax(-1)",
    ),
    TaskKind(
        name="extractive_qa",
        columns=_QUESTION,
        head="qa_outputs",
        head_outputs=2,
        head_bias=True,
        library_class="QuestionAnswering",
        peft_task_type="QUESTION_ANS",
        label_keys=("start_positions", "end_positions"),
        packs_prefix_trees=False,
        caches_features=False,
        fits_threshold=True,
        tuned_name="span head",
        pipeline_tag="question-answering",
        purpose="that finds the answer to a question in a passage, or says that there is none",
        snippet="output = model({inputs})",
    ),
    TaskKind(
        name="generative_qa",
        columns=_QUESTION,
        head=None,
        head_outputs=0,
        head_bias=False,
        library_class="CausalLM",
        peft_task_type="CAUSAL_LM",
        label_keys=("labels",),
        packs_prefix_trees=True,
        caches_features=False,
        fits_threshold=False,
        tuned_name="tuned generative",
        pipeline_tag="text-generation",
        purpose="that writes the answer to a question on a passage, or that there is none",
        snippet="output = model.generate({inputs}, max_new_tokens={max_new_tokens})",
    ),
)
TASKS: Mapping[Task, TaskKind] = MappingProxyType({row.name: row for row in _ROWS})
"""Every kind of task by its name in a recipe."""
LANGUAGE_MODELLING: Task = "generative_qa"
"""The kind that uses the base's own language model head: what an untuned base is opened as."""
