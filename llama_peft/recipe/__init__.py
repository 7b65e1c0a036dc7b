"""A recipe describes one task on one model. This package reads YAML into checked values."""

from llama_peft.recipe import templates
from llama_peft.recipe.checks import Fault
from llama_peft.recipe.ladder import Ladder, RungName
from llama_peft.recipe.load import (
    RECIPES,
    Source,
    differences,
    dump_recipe,
    find_recipe,
    flat_values,
    is_recipe_name,
    load_recipe,
)
from llama_peft.recipe.schema import (
    GIVEN,
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
from llama_peft.recipe.validate import validate

__all__ = [
    "GIVEN",
    "RECIPES",
    "Columns",
    "Data",
    "Eval",
    "Fault",
    "Head",
    "Hub",
    "Ladder",
    "Lora",
    "Model",
    "Parts",
    "Prompt",
    "Quantization",
    "Recipe",
    "RungName",
    "Source",
    "Train",
    "differences",
    "dump_recipe",
    "find_recipe",
    "flat_values",
    "is_recipe_name",
    "load_recipe",
    "templates",
    "validate",
]
