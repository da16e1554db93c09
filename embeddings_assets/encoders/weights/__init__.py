"""Weights of every family: found, fetched, locked, read from their formats, or drawn at random."""
