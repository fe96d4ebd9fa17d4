"""The stages, one file each: run(recipe, inputs, ...) -> result."""
