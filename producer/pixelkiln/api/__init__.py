"""The HTTP API: thin routers over the `Producer`; `python -m pixelkiln.api` serves it."""
