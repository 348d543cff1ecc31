"""d3mjax: which training examples make a classifier fail on a subgroup, and what happens if they go?"""

__version__ = "0.1.0"
