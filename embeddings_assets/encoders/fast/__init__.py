"""What only the `fast` profile needs. Private torch operators are used here and nowhere else."""
