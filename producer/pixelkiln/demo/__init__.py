"""`make demo`: prompts and a photograph go through the whole stack, and come back as one contact sheet."""
