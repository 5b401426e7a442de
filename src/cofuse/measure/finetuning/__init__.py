"""Finetuning as one thing: mask or adapter, training, score, patch. Imported by name."""
