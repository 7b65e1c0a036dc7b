"""The keys of a recipe about the model: the base, how it is stored, the adapter and the head."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from llama_peft.recipe.fields import Count, DType, Layer, LoraInit, ModelName, Share, Size, Text


class Section(BaseModel):
    """A group of keys: strict types, no unknown keys, and it cannot be changed."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def section_of(annotation: object) -> type[Section] | None:
    """Return the section that a key of this type holds, or None."""
    options = get_args(annotation) or (annotation,)
    sections = (item for item in options if isinstance(item, type) and issubclass(item, Section))
    return next(sections, None)


class Model(Section):
    """The base model."""

    model_name_or_path: ModelName
    "Hub id or folder of the base model. `tiny` is the embedded model."
    revision: Text = "main"
    "Branch, tag or commit of the base model on the Hub."
    dtype: DType | None = None
    "Type of the weights that are not quantised. null takes the fastest type of this machine."
    attn_implementation: Literal["sdpa", "eager", "flex_attention", "varlen"] | None = None
    "How attention is computed. null: sdpa; tree rows on a GPU by FlexAttention, or else by varlen."


class Quantization(Section):
    """BitsAndBytesConfig: how the frozen base is stored."""

    load_in_4bit: bool = True
    "Store the base with 4 bits per weight."
    load_in_8bit: bool = False
    "Store the base with 8 bits per weight. This needs load_in_4bit: false."
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    "The 4-bit number format."
    bnb_4bit_use_double_quant: bool = True
    "Quantise the quantisation constants too, which saves 0.4 bits per weight."
    bnb_4bit_compute_dtype: DType | None = None
    "Type in which 4-bit weights are multiplied. null takes model.dtype."


class Lora(Section):
    """LoraConfig: every key that a YAML file can hold and that needs no further package."""

    r: Count = 16
    "Rank of the adapter."
    lora_alpha: Count = 32
    "The adapter's output is scaled by lora_alpha / r."
    lora_dropout: Share = 0.0
    "Dropout on the adapter's input."
    target_modules: Text | list[Text] = [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ]
    "The linear layers that get an adapter: a list of names, a regular expression, or all-linear."
    exclude_modules: Text | list[Text] | None = None
    "The layers that get no adapter: a list of names or a regular expression."
    bias: Literal["none", "all", "lora_only"] = "none"
    "Which biases are trained."
    use_rslora: bool = False
    "Scale by lora_alpha / sqrt(r) instead."
    use_dora: bool = False
    "Learn the magnitude and the direction of each weight separately (DoRA)."
    use_qalora: Literal[False] = False
    "Always false, because QA-LoRA needs a GPTQ base. Recipes of version 0.1.0 contain this key."
    qalora_group_size: Literal[16] = 16
    "Always 16, and never used. Recipes of version 0.1.0 contain this key."
    lora_bias: bool = False
    "Add a bias to the second matrix of the adapter."
    init_lora_weights: LoraInit = True
    "First weights: true (the model is unchanged), false, gaussian, olora, orthogonal, pissa, ..."
    layers_to_transform: Size | list[Size] | None = None
    "Numbers of the layers that get an adapter. null means all layers."
    layers_pattern: Text | list[Text] | None = None
    "Name of the model's list of layers, if it is not the usual one."
    rank_pattern: dict[str, Count] = {}
    "Ranks that differ from r, by the name of the layer or a regular expression."
    alpha_pattern: dict[str, Count] = {}
    "Values that differ from lora_alpha, by the name of the layer or a regular expression."
    modules_to_save: list[Text] | None = None
    "Modules to train and save whole. The head is always among them."
    trainable_token_indices: list[Size] | dict[str, list[Size]] | None = None
    "Ids of the tokens whose embeddings are trained."
    alora_invocation_tokens: list[Size] | None = None
    "Ids of the tokens after which the adapter is active (activated LoRA, generative_qa only)."
    ensure_weight_tying: bool = False
    "Keep the adapters of tied layers tied."
    fan_in_fan_out: bool = False
    "The layers store their weights transposed, as in GPT-2."

    def peft_kwargs(self) -> dict[str, object]:
        """Return the keys for `LoraConfig(**...)`."""
        return self.model_dump(mode="json")


class Head(Section):
    """The head of a classification or extractive_qa model."""

    pooling: Literal["last", "mean"] = "last"
    "The states that the classification head reads: of the last token, or the mean of all tokens."
    layer: Layer = -1
    "The block whose states, after the final norm, the head reads: -1 is the last. auto tries all."
    features: Literal["prefix_tree", "length_sorted", "none"] = "prefix_tree"
    "How a classification head without LoRA gets its states. none computes them in every epoch."
