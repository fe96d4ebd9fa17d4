"""The recipe: what can be said, how it is loaded, and mistakes in words."""
