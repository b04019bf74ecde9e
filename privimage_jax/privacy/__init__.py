"""The privacy core: flat files that can each be audited alone; `dp_sgd.py` alone composes them."""
