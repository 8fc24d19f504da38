"""Python imports this when it starts with this folder on its path: what lives a day lives a minute in a soak.

These lifetimes are promises to clients and no settings; nobody but a soak needs them short. All else is as it
is, and everything runs out by itself.
"""

from pixelkiln_shared import keys

LIFE_S = 60

keys.IDEMPOTENCY_S = LIFE_S
keys.DELIVERED_S = LIFE_S
keys.UNDELIVERED_S = LIFE_S
keys.EVENTS_KEPT = 100  # of each of 16 streams: they are full after some hundred jobs
