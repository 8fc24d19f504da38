"""Webhooks: whom a job may tell of its end, the signature, and the courier (docs/webhooks.md)."""
