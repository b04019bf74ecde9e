"""A package, as those of TFDS's catalogue are: TFDS looks for the files of a set in another way without."""
