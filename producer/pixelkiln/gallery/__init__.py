"""The pages people look at: every job with its picture, live; one job in full; nothing from other servers."""
