"""The four encoders: recipe, weights, projection, forward pass. Importing this package loads no torch."""
