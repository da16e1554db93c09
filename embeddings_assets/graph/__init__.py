"""The Dagster graph over the other rooms; the only package that imports dagster, beside `definitions`."""
