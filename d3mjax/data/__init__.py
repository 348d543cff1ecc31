"""Data in memory: splits and their checks, TFDS builders, planted cues, and the user's own arrays."""
