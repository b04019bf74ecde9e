"""What the command line does beside running stages, one file each."""
