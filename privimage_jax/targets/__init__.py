"""Machines that are not here: what their compilers say of the pipeline's programs."""
