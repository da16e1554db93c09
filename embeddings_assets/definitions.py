"""What Dagster loads: the graph of the settings in the environment."""

from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import Settings

defs = build_definitions(Settings.from_environment())
