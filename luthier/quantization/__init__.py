"""Weights held in few bits: one file for each format, and the linear layer that computes on any of them."""
