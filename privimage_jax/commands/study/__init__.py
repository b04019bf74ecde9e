"""`privimage study`: every method at every budget with several seeds, and one table of all."""
