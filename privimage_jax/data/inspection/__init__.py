"""A look at image sets before anything is spent: what was found, and what looks wrong with it.

All of it comes from the images without noise: it is for the operator alone and never enters `release/`.
"""
