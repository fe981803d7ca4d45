"""Model, training, evaluation and export: histories in, a bundle out."""
