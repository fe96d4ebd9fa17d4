"""From a folder to a recipe: what is in it, by looking, with a reason for every line."""
