"""Takes the README's pictures from a running web UI.

    make demo && make dev
    .venv/bin/python docs/take_pictures.py http://127.0.0.1:3000

Writes `images/asset_graph.png` and `images/partition_matrix.png` beside this file. Needs Chromium (Debian's
package `chromium`, or the path given by --chromium).
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
PARTITION = "CUB-200-2011%7Ctrain"
WIDTHS = {"asset_graph": 1000, "partition_matrix": 1400}  # pixels
# Tall enough for the whole graph at its own size; as wide as a laptop for the page with the partitions.
VIEWPORTS = {
    "asset_graph": {"width": 1400, "height": 1250},
    "partition_matrix": {"width": 1200, "height": 860},
}
SCALE = 2
MARGIN = 24
DARKER = 6  # grey levels by which content differs from the background and its dots


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_load_state("networkidle")
    hide = page.get_by_text("Hide navigation")
    if hide.count():
        hide.click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)


def asset_graph(page: Page, url: str) -> Image.Image:
    """The lineage with both groups open."""
    open_page(page, f"{url}/asset-groups")
    page.keyboard.press("Alt+e")
    page.wait_for_timeout(1000)
    # Opened again with the groups already open, so that all of it is fitted into the window.
    page.reload()
    page.wait_for_load_state("networkidle")
    page.get_by_text("18 partitions").nth(4).wait_for()
    page.wait_for_timeout(2000)
    nodes = [node.bounding_box() for node in page.locator("foreignObject").all()]
    boxes = [box for box in nodes if box is not None]
    left, top = (min(box[side] for box in boxes) - MARGIN for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes) + MARGIN
    bottom = max(box["y"] + box["height"] for box in boxes) + MARGIN
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


def partition_matrix(page: Page, url: str) -> Image.Image:
    """The partitions of one embeddings asset, with the metadata of one of them."""
    open_page(page, f"{url}/assets/embeddings/CLIP?view=partitions&partition={PARTITION}")
    page.get_by_text("partition_row_count").wait_for()
    return Image.open(io.BytesIO(page.screenshot()))


def cropped(picture: Image.Image, width: int) -> Image.Image:
    """Without empty margins, no wider than `width`."""
    picture = picture.convert("RGB")
    paper = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    box = (
        ImageChops.difference(picture, paper)
        .convert("L")
        .point(lambda level: 255 * (level > DARKER))
        .getbbox()
    )
    if box is not None:
        left, top, right, bottom = box
        edges = max(0, left - MARGIN), max(0, top - MARGIN), right + MARGIN, bottom + MARGIN
        picture = picture.crop((*edges[:2], min(picture.width, edges[2]), min(picture.height, edges[3])))
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the README's pictures from a running web UI.")
    parser.add_argument("url", help="address of the web UI, such as http://127.0.0.1:3000")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        for name, take in (("asset_graph", asset_graph), ("partition_matrix", partition_matrix)):
            page = browser.new_page(viewport=VIEWPORTS[name], device_scale_factor=SCALE)
            picture = cropped(take(page, arguments.url.rstrip("/")), WIDTHS[name])
            picture.save(IMAGES / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
