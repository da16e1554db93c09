"""The encoders: preprocessing, plan, projection, forward pass. Importing this package loads no torch.

What differs between families of models is in `families/`; family.py says what each offers.
"""
