"""The peers: each in an environment of its own, run by its own Python, importing nothing of ours."""
