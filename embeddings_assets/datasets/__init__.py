"""From raw datasets in their official layouts to manifests; knows no model and no embedding file."""
