"""Rounds: contributions of a branch fused, judged, and released; and what undoes that."""
