"""What a user writes: one typed model that names one choice from each folder below."""

from luthier.recipe.loading import dump_recipe, json_schema, load_recipe, make_recipe
from luthier.recipe.settings import Recipe

__all__ = ["Recipe", "dump_recipe", "json_schema", "load_recipe", "make_recipe"]
