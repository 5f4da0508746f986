"""Templates of grade-school word problems; base.py says how one is written."""
from .base import G, TEMPLATES
from . import money, rates, comparisons, units, totals  # each adds its templates to the list

__all__ = ["G", "TEMPLATES"]
