"""Takes the README's pictures from a running web UI: python docs/take_pictures.py [URL] [FOLDER]

Start it with `make demo` and `make dev`. Needs Debian's Chromium, or any at CHROMIUM.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WINDOW = {"width": 1400, "height": 900}
NAVIGATION = 240  # pixels of the bar on the left, which is left out
MODEL = "DINOv2"


def asset_graph(page: Page, url: str, folder: Path) -> None:
    """The graph of all assets."""
    page.goto(f"{url}/assets/processed_images?view=lineage&lineageScope=downstream")
    page.wait_for_selector("text=SigLIPv2", timeout=60_000)
    page.wait_for_timeout(5000)  # the layout and the partitions' status arrive one after the other
    area = {"x": NAVIGATION + 290, "y": 205, "width": 580, "height": 680}
    page.screenshot(path=folder / "asset_graph.png", clip=area)


def partition_matrix(page: Page, url: str, folder: Path) -> None:
    """The dataset x split matrix of one model, and the metadata of one partition."""
    page.goto(f"{url}/assets/embeddings/{MODEL}?view=partitions&partition=CUB-200-2011%7Ctrain")
    page.wait_for_selector("text=dagster/partition_row_count", timeout=60_000)
    page.wait_for_timeout(3000)
    area = {"x": NAVIGATION, "y": 0, "width": WINDOW["width"] - NAVIGATION, "height": 640}
    page.screenshot(path=folder / "partition_matrix.png", clip=area)


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport=WINDOW)
        asset_graph(page, url, folder)
        partition_matrix(page, url, folder)
        browser.close()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        arguments[0] if arguments else "http://127.0.0.1:3000",
        Path(arguments[1]) if len(arguments) > 1 else Path(__file__).parent / "images",
    )
