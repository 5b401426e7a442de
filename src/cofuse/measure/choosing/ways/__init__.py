"""Ways of choosing which models to fuse, one a file; `way.py` is what they are given and give."""
