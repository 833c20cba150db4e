"""Predicts, from a recipe alone, the bytes and the time that a run needs."""
