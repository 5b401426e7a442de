"""Squared gradients of each example, summed over examples, at the speed of a batch."""

from .collector import Collector, DoubtError
from .rules import RULES, Rule, rule_of

__all__ = ["RULES", "Collector", "DoubtError", "Rule", "rule_of"]
