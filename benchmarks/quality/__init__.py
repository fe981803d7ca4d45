"""How well it ranks: the model, what it is without each of its inputs, and full-sequence rivals, on three logs."""
