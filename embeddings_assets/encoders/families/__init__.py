"""One file per family of architectures; `ModelSpec.encoder` names it, and nothing else registers it.

What is true of every family belongs in `encoders/`.
"""
