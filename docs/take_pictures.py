"""Takes the pictures of the README and of operations.md from a running web UI.

    make demo && make dev
    .venv/bin/python docs/take_pictures.py http://127.0.0.1:3000 [--only failure ...]

Writes `images/*.png` beside this file. Needs Chromium (Debian's package `chromium`, or the path given by
--chromium). `failure` shows the latest failed run, and is left out where there is none: before it is taken,
move an image of a raw folder away and materialize `processed_images` of that dataset.
"""

import argparse
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
DATASET, SPLIT = "CUB-200-2011", "train"
PARTITION = f"{DATASET}%7C{SPLIT}"
WIDTH = 1400  # pixels; of the graph, which has no more to show, 1000
# Tall enough for the whole graph at its own size; otherwise as wide as a laptop.
VIEWPORT = {"width": 1200, "height": 860}
GRAPH_VIEWPORT = {"width": 1700, "height": 1250}
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


def metadata(page: Page, url: str) -> Image.Image:
    """All that is recorded of one partition."""
    page.set_viewport_size({"width": VIEWPORT["width"], "height": 2400})
    open_page(page, f"{url}/assets/embeddings/CLIP?view=partitions&partition={PARTITION}")
    table = page.locator("table").filter(has_text="nearest_neighbours").last
    box = table.bounding_box()
    assert box is not None
    clip = {**box, "width": VIEWPORT["width"] - box["x"] - MARGIN}  # the rest is outside the window
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


def nightly(page: Page, url: str) -> Image.Image:
    """The nightly backfill and its switch."""
    open_page(page, f"{url}/locations/embeddings_assets/sensors/nightly_backfill")
    page.get_by_role("checkbox").wait_for(state="attached")
    clip = {"x": 0, "y": 0, "width": VIEWPORT["width"], "height": 500}
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


def raw_dataset(page: Page, url: str) -> Image.Image:
    """What was observed of one raw dataset."""
    open_page(page, f"{url}/assets/raw_images?view=events")
    page.get_by_text(DATASET).first.click()
    page.get_by_text("homepage").wait_for()
    return Image.open(io.BytesIO(page.screenshot()))


def materialize(page: Page, url: str) -> Image.Image:
    """The dialog that chooses partitions, three of them chosen."""
    open_page(page, f"{url}/assets/embeddings/CLIP?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Select a partition or create one").first.click()
    page.get_by_role("menuitem", name=DATASET).click()
    page.keyboard.press("Escape")
    dialog.get_by_role("button", name="All").nth(1).click()
    dialog.get_by_text("3 partitions").wait_for()
    page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(page.screenshot()))


def neighbours(page: Page, url: str) -> Image.Image:
    """The sheet of nearest neighbours."""
    open_page(page, f"{url}/assets/embeddings/CLIP?view=partitions&partition={PARTITION}")
    page.get_by_text("[Show Markdown]").nth(1).click()
    page.get_by_role("dialog").locator("img[src^='data:image/png']").wait_for()
    page.wait_for_timeout(1000)
    return Image.open(io.BytesIO(page.get_by_role("dialog").screenshot()))


def checks(page: Page, url: str) -> Image.Image:
    """The checks of one asset, and the outcome of one of them."""
    open_page(page, f"{url}/assets/embeddings/CLIP?view=checks&checkDetail=unit_norm")
    page.get_by_text("Every vector has L2 norm 1").wait_for()
    return Image.open(io.BytesIO(page.screenshot()))


def failure(page: Page, url: str) -> Image.Image | None:
    """The latest failed run."""
    query = "{ runsOrError(filter: {statuses: [FAILURE]}, limit: 1) { ... on Runs { results { runId } } } }"
    answer = page.request.post(f"{url}/graphql", data={"query": query}).json()
    runs = answer["data"]["runsOrError"]["results"]
    if not runs:
        return None
    open_page(page, f"{url}/runs/{runs[0]['runId']}?logs=type%3ASTEP_FAILURE")
    page.get_by_role("cell", name="remedy").wait_for()
    page.wait_for_timeout(2000)
    # Down to the remedy: the stack below it is of the machine where it was taken.
    clip = {"x": 0, "y": 0, "width": VIEWPORT["width"], "height": 560}
    return Image.open(io.BytesIO(page.screenshot(clip=clip)))


PICTURES: Mapping[str, Callable[[Page, str], Image.Image | None]] = {
    "asset_graph": asset_graph,
    "partition_matrix": partition_matrix,
    "metadata": metadata,
    "nightly": nightly,
    "raw_dataset": raw_dataset,
    "materialize": materialize,
    "neighbours": neighbours,
    "checks": checks,
    "failure": failure,
}


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of the web UI, such as http://127.0.0.1:3000")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        for name in arguments.only:
            is_graph = name == "asset_graph"
            page = browser.new_page(
                viewport=GRAPH_VIEWPORT if is_graph else VIEWPORT, device_scale_factor=SCALE
            )
            picture = PICTURES[name](page, arguments.url.rstrip("/"))
            if picture is not None:
                smaller = cropped(picture, 1000 if is_graph else WIDTH).quantize(128)
                smaller.save(IMAGES / f"{name}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
