"""Measures of fidelity and utility."""
