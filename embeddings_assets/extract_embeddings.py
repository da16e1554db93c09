"""The documented script: embed one dataset with one model.

python -m embeddings_assets.extract_embeddings --model CLIP --dataset CUB-200-2011 \\
    --data_dir data/processed --output_dir data/embeddings

It is `embeddings-assets extract` under another name; both spellings of each option are accepted.
"""

from embeddings_assets.cli.main import extract, run

if __name__ == "__main__":
    import typer

    script = typer.Typer(add_completion=False, rich_markup_mode="rich")
    script.command()(extract)
    run(script)
