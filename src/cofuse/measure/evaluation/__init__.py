"""Models on a suite of tasks: protocols, pieces of work, records.

Imported by name; `records` needs no torch.
"""
