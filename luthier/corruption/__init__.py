"""The corruptions that pre-training objectives learn to undo, one file each, as pure functions over arrays.

What a function draws comes from the generator it is given; `keyed` makes one for a document in an epoch.
"""
