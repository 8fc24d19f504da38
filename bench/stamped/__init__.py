"""Our worker as it is, but the stub's jobs leave stamps (`bench/peers/stamps.py`)."""
