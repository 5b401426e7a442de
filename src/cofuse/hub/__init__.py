"""The hub: a community evolves a model together."""
