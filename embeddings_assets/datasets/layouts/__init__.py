"""One file per layout of raw datasets, and what they share: how lists and class folders are read."""
