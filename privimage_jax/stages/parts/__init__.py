"""What stages are made of, where it fills a file of its own."""
