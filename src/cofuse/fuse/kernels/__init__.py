"""Methods and steps compiled by Numba; imported when first used. Each has a plain twin in `fuse.methods`."""
