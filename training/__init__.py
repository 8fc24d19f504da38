"""Trains the small models that ship inside the worker: a drawn world, and pictures of it from text.

The package stands alone: it imports nothing of the product, and the product imports nothing of it. Run it
from the repository root as ``python -m training --help``.
"""
