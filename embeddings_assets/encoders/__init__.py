"""The encoders: recipe, weights, projection, forward pass. Importing this package loads no torch.

Each family of models is one module, which `ModelSpec.encoder` names; family.py says what it offers. All other
modules serve every family alike.
"""
