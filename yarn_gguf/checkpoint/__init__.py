"""Where a checkpoint lies, and its weights as numbers that can be read in slices."""
