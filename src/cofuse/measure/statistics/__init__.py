"""Statistics of a model on examples: the Fisher's diagonal and Gram matrices, as a checkpoint bound to its content.

`record` needs no torch; all else does. All of it is imported by name.
"""
