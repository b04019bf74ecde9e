"""Experiment configs: `base.py` has every knob, each other file only what differs."""
