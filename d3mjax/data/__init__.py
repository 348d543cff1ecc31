"""Data in memory: splits, pairs and tables with checks, the files of users, planted cues and errors, public sets."""
