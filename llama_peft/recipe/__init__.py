"""A recipe: one task on one model, from a YAML file to checked values."""

from llama_peft.recipe.checks import Fault
from llama_peft.recipe.load import RECIPES, dump_recipe, find_recipe, load_recipe, validate
from llama_peft.recipe.schema import (
    Columns,
    Data,
    Eval,
    Head,
    Hub,
    Lora,
    Model,
    Parts,
    Prompt,
    Quantization,
    Recipe,
    Train,
)

__all__ = [
    "RECIPES",
    "Columns",
    "Data",
    "Eval",
    "Fault",
    "Head",
    "Hub",
    "Lora",
    "Model",
    "Parts",
    "Prompt",
    "Quantization",
    "Recipe",
    "Train",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "validate",
]
