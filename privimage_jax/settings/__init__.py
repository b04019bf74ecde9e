"""What values of settings must be like, and how they name code from elsewhere."""
