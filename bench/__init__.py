"""Luthier's speed and memory against other tools', on the same work in one run; see README.md."""
