"""The contracts that the producer and the worker both sign.

Nothing in this package knows torch, FastAPI or a concrete model. A module enters it only when both
doors import it.
"""

__version__ = "0.1.0"
