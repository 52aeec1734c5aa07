"""The steps of a recipe, one file a technique; `STEPS` is the explicit table a recipe file may name."""
