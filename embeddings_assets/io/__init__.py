"""Files, locks, downloads, archives and images: no knowledge of models, and of a dataset its archives."""
