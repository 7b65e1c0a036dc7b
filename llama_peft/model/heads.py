"""The mathematics of classification and span heads, in one implementation for every causal family.

A head is one float32 linear layer over the backbone's last hidden states. It is never quantised,
and it casts its input itself: a bfloat16 head would lose most of its updates, and a float32 head
without the cast would fail on bfloat16 states.

Shapes: B examples, T tokens, D hidden size, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
)
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
)

from llama_peft.model.estimate.batch import masked_width
from llama_peft.prefix_tree.batch import Packed, unpacked
from llama_peft.system.memory import gpu_has_flash
from llama_peft.tasks import TASKS, Task


class Float32Linear(nn.Linear):
    """A linear layer that always computes in float32, whatever its input or autocast asks for."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight, self.bias)


def as_float32(linear: nn.Linear) -> Float32Linear:
    """Return the same weights in a Float32Linear.

    Raises TypeError on a quantised layer, because its exact weights are lost.
    """
    if type(linear) not in (nn.Linear, Float32Linear):
        raise TypeError(f"the head was loaded as {type(linear).__name__}, a quantised layer")
    head = Float32Linear(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=torch.float32,
    )
    head.load_state_dict(linear.state_dict())
    return head


def pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: str) -> Tensor:
    """Return (B, D) in float32: the last token's state, or the mean over the tokens.

    Padding must be on the right; it is not counted.
    """
    if pooling == "last":
        last_B = mask_BT.sum(dim=1) - 1
        rows_B = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
        return hidden_BTD[rows_B, last_B].float()
    weights_BT1 = mask_BT.unsqueeze(-1).float()
    return (hidden_BTD.float() * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


def class_loss(
    logits_BC: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    weight_C: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the mean loss over the batch, as transformers computes it for this problem.

    labels: numbers of classes (B,); for multi_label_classification 0.0 or 1.0 for each class
    (B, C), whose binary cross-entropy is also averaged over the classes; for regression the numbers
    to learn (B,), whose squared error is averaged.
    weight_C: the `weight` of torch's CrossEntropyLoss, or the `pos_weight` of its BCEWithLogitsLoss.
    reduction: sum returns the sum instead of the mean.
    """
    logits_BC = logits_BC.float()
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(
            logits_BC, labels, pos_weight=weight_C, reduction=reduction
        )
    if problem_type == "regression":
        return F.mse_loss(logits_BC.squeeze(-1), labels, reduction=reduction)
    return F.cross_entropy(logits_BC, labels, weight=weight_C, reduction=reduction)


def span_scores(logits_BT2: Tensor, allowed_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return start and end logits (B, T), with -inf at every position that is not allowed.

    So neither the loss nor the search sees the question.
    """
    start_BT, end_BT = logits_BT2.float().unbind(dim=-1)
    forbidden = ~allowed_BT.bool()
    return start_BT.masked_fill(forbidden, -torch.inf), end_BT.masked_fill(forbidden, -torch.inf)


def span_loss(start_BT: Tensor, end_BT: Tensor, starts_B: Tensor, ends_B: Tensor) -> Tensor:
    """Return the mean of the start and the end cross-entropy.

    Unlike the library's loss, it clamps and ignores no position.
    """
    return (F.cross_entropy(start_BT, starts_B) + F.cross_entropy(end_BT, ends_B)) / 2


def _states(
    backbone: nn.Module, input_ids_BT: Tensor, mask_BT: Tensor, packed: Packed | None
) -> Tensor:
    """Return the backbone's last states, of the padded rows or of the tree rows beside them.

    Padding on the right is after everything that a causal model's tokens see, so it needs no mask.
    On a GPU, flash attention without one keeps no mask and no repeated keys in each layer. Older
    GPUs would multiply whole matrices without one, and the library drops a mask that hides nothing,
    so there every row gets some padding.
    """
    if packed is not None:
        trees = {key: value for key, value in packed.items() if key != "paths"}
        states: Tensor = backbone(**trees, use_cache=False).last_hidden_state
        return states
    length, mask = input_ids_BT.shape[1], mask_BT
    if input_ids_BT.is_cuda and gpu_has_flash():
        mask = None
    elif input_ids_BT.is_cuda:
        more = 0, masked_width(length) - length
        input_ids_BT, mask = F.pad(input_ids_BT, more), F.pad(mask_BT, more)
    states = backbone(input_ids_BT, attention_mask=mask, use_cache=False).last_hidden_state
    return states[:, :length]


class _Classification(GenericForSequenceClassification):
    """Applies the head to the pooled state only; `config.head_pooling` names the pooling."""

    # The loss is a mean over the batch, so Trainer must divide it by the accumulation steps.
    # Otherwise it multiplies the gradient by them, and by the number of processes.
    accepts_loss_kwargs = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        packed: Packed | None = None,
        **kwargs: object,
    ) -> SequenceClassifierOutputWithPast:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = _states(self.model, input_ids, mask, packed)
        if packed is not None:
            hidden = unpacked(hidden, packed["paths"])
        logits = self.score(pool(hidden, mask, self.config.head_pooling))
        loss = None if labels is None else class_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)


class _Span(GenericForQuestionAnswering):
    """Scores the positions that `span_mask` (B, T) allows.

    These are the window's context, and the last token for "no answer".
    """

    accepts_loss_kwargs = False

    def __init__(self, config: PretrainedConfig) -> None:
        """Build backbone and head. The library's own cannot: it reads `config.hidden_size`, which
        bases with a section for their language model (Gemma 3 with images) lack.
        """
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = AutoModel.from_config(config)
        self.qa_outputs = nn.Linear(config.get_text_config().hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        span_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        packed: Packed | None = None,
        **kwargs: object,
    ) -> QuestionAnsweringModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.qa_outputs(_states(self.model, input_ids, mask, packed))
        if packed is not None:
            logits = unpacked(logits, packed["paths"])
        start, end = span_scores(logits, mask if span_mask is None else span_mask)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)


def model_class(config: PretrainedConfig, task: Task) -> type[PreTrainedModel]:
    """Return the class of the family's model with the task's head.

    transformers' own Llama model for question answering would leave the backbone random. Raises
    KeyError if transformers has no causal model for the config's type.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    generic = _Classification if TASKS[task].has_labels else _Span
    stem = causal.__name__.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    name = f"{stem}For{TASKS[task].library_class}"
    return type(name, (generic, family), {"config_class": type(config)})
