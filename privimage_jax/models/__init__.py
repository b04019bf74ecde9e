"""The model zoo; `registry.py` finds models by name or import string."""
