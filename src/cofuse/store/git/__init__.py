"""Checkpoints in a git repository: git keeps a small manifest, the store beside it keeps the tensors."""
