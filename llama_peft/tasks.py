"""The kinds of task: one row each, data only.

What differs between tasks and is a word, a number or a name stands here once. What differs in
behaviour is decided in two places: where training starts (`training/setup.py`) and where a
predictor is opened (`inference/predict.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

Task = Literal[
    "classification", "multi_label_classification", "regression", "extractive_qa", "generative_qa"
]
NamedTask = Literal["classification", "extractive_qa", "generative_qa", "regression"]
"""What a recipe's `task` can be. Classification with several labels a row is a kind of its own."""
LOWER_IS_BETTER = ("loss", "mae")
"""The scores that are errors."""
Side = Literal["labels", "label_sets", "numbers", "answers"]
"""What is predicted: one label, any number of labels, a number, or an answer to a question."""
MAIN: Mapping[Side, tuple[str, str]] = MappingProxyType(
    {
        "labels": ("accuracy", "f1_macro"),
        "label_sets": ("f1_micro", "f1_macro"),
        "numbers": ("spearman", "pearson"),
        "answers": ("f1", "exact"),
    }
)
"""By what is predicted, the metric that decides, as papers on such tasks report it, and the one to
show beside it. Predictions that are all the same number have no correlation.
"""


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """One kind of task."""

    name: Task
    side: Side
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
    problem_type: str | None = None
    """What transformers calls the head's loss in `config.problem_type`; None is its default."""
    label_keys: tuple[str, ...]
    """The keys of a batch that hold what is learned."""
    caches_features: bool
    """Whether a head alone can train on states that are computed once; a span head's would be too
    large.
    """
    scores: tuple[str, ...]
    """The scores, beside the loss, by which a training can choose its best checkpoint."""
    fits_threshold: bool
    """Whether thresholds that are fitted on validation decide: on "no answer", or on each label."""
    tuned_name: str
    """What tables call a tuned model."""
    pipeline_tag: str
    """The Hub's name of the task."""
    purpose: str
    """For the card: what the trained weights do."""
    snippet: str
    """For the card: how plain transformers uses the model on `{inputs}`, or the `{tokens}` that they
    come from; of a head on texts, what becomes of its `{logits}`.
    """
    outcome: str = ""
    """For the card: what every text gets."""

    @property
    def has_labels(self) -> bool:
        """Whether an example is a text with its truth in the column `label`; else it is a question
        on a passage.
        """
        return "label" in self.columns

    @property
    def names_labels(self) -> bool:
        """Whether the truth is one or several labels from a list of names."""
        return self.side in ("labels", "label_sets")

    @property
    def finds_spans(self) -> bool:
        """Whether an answer is a piece of the passage, which a head finds; else answers are written
        token by token.
        """
        return self.head is not None and not self.has_labels

    @property
    def fits_temperature(self) -> bool:
        """Whether a temperature that is fitted on validation makes its probabilities honest."""
        return self.names_labels

    def head_size(self, hidden: int, num_labels: int) -> int:
        """Parameters of the head on states of size `hidden`."""
        if self.head is None:
            return 0
        return self.outputs(num_labels) * (hidden + self.head_bias)

    def outputs(self, num_labels: int) -> int:
        """Outputs of the head, if there are so many labels."""
        return num_labels if self.head_outputs is None else self.head_outputs


_CLASSIFICATION = TaskKind(
    name="classification",
    side="labels",
    columns=("text", "label"),
    head="score",
    head_outputs=None,
    head_bias=False,
    library_class="SequenceClassification",
    peft_task_type="SEQ_CLS",
    label_keys=("labels",),
    caches_features=True,
    scores=("accuracy", "f1"),
    fits_threshold=False,
    tuned_name="classification head",
    pipeline_tag="text-classification",
    purpose="that classifies texts",
    snippet="scores = {logits}.softmax(-1)",
    outcome="every text gets one of the labels",
)
_QUESTION = ("question", "context", "answers")
_ROWS = (
    _CLASSIFICATION,
    replace(
        _CLASSIFICATION,
        name="multi_label_classification",
        side="label_sets",
        problem_type="multi_label_classification",
        scores=("subset_accuracy", "f1_micro"),
        fits_threshold=True,
        tuned_name="multi-label head",
        purpose="that gives texts any number of labels",
        snippet="scores = {logits}.sigmoid()",
        outcome="every text gets each label whose probability is above its threshold",
    ),
    replace(
        _CLASSIFICATION,
        name="regression",
        side="numbers",
        head_outputs=1,
        problem_type="regression",
        scores=("mae", "pearson"),
        tuned_name="regression head",
        purpose="that gives texts a number",
        snippet="numbers = {logits}[:, 0]",
        outcome="every text gets a number, which can lie outside the range of the training data",
    ),
    TaskKind(
        name="extractive_qa",
        side="answers",
        columns=_QUESTION,
        head="qa_outputs",
        head_outputs=2,
        head_bias=True,
        library_class="QuestionAnswering",
        peft_task_type="QUESTION_ANS",
        label_keys=("start_positions", "end_positions"),
        caches_features=False,
        scores=("exact", "f1"),
        fits_threshold=True,
        tuned_name="span head",
        pipeline_tag="question-answering",
        purpose="that finds the answer to a question in a passage, or says that there is none",
        snippet=(
            "tokens = {tokens}\n"
            "output = model(**tokens)\n"
            "starts, ends = output.start_logits[0], output.end_logits[0]\n"
            "pairs = [(i, j) for i in range({first}, {last}) for j in range(i, min(i + {longest}, {last}))]\n"
            "i, j = max(pairs, key=lambda pair: float(starts[pair[0]] + ends[pair[1]]))\n"
            "no_answer = (starts[-1] + ends[-1] - starts[i] - ends[j]).sigmoid()\n"
            'answer = "" if no_answer > {threshold} else '
            'tokenizer.decode(tokens["input_ids"][0, i : j + 1]).strip()'
        ),
    ),
    TaskKind(
        name="generative_qa",
        side="answers",
        columns=_QUESTION,
        head=None,
        head_outputs=0,
        head_bias=False,
        library_class="CausalLM",
        peft_task_type="CAUSAL_LM",
        label_keys=("labels",),
        caches_features=False,
        scores=("exact", "f1"),
        fits_threshold=False,
        tuned_name="tuned generative",
        pipeline_tag="text-generation",
        purpose="that writes the answer to a question on a passage, or that there is none",
        snippet="output = model.generate({inputs}, max_new_tokens={max_new_tokens})",
    ),
)
TASKS: Mapping[Task, TaskKind] = MappingProxyType({row.name: row for row in _ROWS})
"""Every kind of task by its name."""
LANGUAGE_MODELLING: Task = "generative_qa"
"""The kind that uses the base's own language model head: what an untuned base is opened as."""
