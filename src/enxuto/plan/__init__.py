"""From a goal to a recipe: a bounded search over visible recipes that keeps the best so far at every moment."""
