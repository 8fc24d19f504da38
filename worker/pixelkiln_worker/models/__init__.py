"""`python -m pixelkiln_worker.models`: the weights of this machine's models, checked, fetched, measured."""
