# SPDX-License-Identifier: Apache-2.0
"""The review page in headless Chromium, opened from a file; skipped where there is none."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from mal_mmdet.labeling import apply_review, encode_mask, read_coco, write_json
from mal_mmdet.visualization import write_page, write_review_page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python")

# Names that would run, or break the page, if any of them were taken for markup or script.
HOSTILE = "</script><script>window.hacked = 1</script>"
HOSTILE_IMAGE = '"><img src=x onerror="window.hacked=1">\u2028.png'
QUALITIES = [0.9, 0.5, 0.1, 0.7, 0.3, None]
WORST_FIRST = [2, 4, 1, 3, 0, 5]  # positions in the file


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium found; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page's folder; at the end no error and no request to elsewhere has happened."""
    context = browser.new_context(viewport=dict(width=1300, height=800))
    complaints, requests = [], []

    def open_folder(folder):
        page = context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "index.html").as_uri())
        # Observers of the layout have been told of it after a frame, and scroll to the start.
        page.evaluate(
            "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )
        return page

    yield open_folder
    context.close()
    assert complaints == []
    assert requests and all(re.match("(file|data|blob):", url) for url in requests)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six boxes of two categories in one image, with ids of both kinds."""
    folder = tmp_path_factory.mktemp("review")
    cv2.imwrite(str(folder / "a.png"), np.full((200, 300, 3), 120, dtype=np.uint8))
    (folder / "a.png").rename(folder / HOSTILE_IMAGE)
    anns = []
    for i, quality in enumerate(QUALITIES):
        w, h = (20, 30) if i < 2 else (60, 50) if i < 5 else (150, 140)
        mask = np.zeros((200, 300), dtype=np.uint8)
        mask[10 : 10 + h, 10 : 10 + w] = 1
        entry = dict(id=100 + i if i % 2 else f"id{i}", image_id=1, category_id=1 + i % 2)
        entry |= dict(bbox=[10, 10, w, h], segmentation=encode_mask(mask))
        anns.append(entry | ({} if quality is None else dict(mask_quality=quality)))
    categories = [dict(id=1, name=HOSTILE), dict(id=2, name="cat")]
    images = [dict(id=1, file_name=HOSTILE_IMAGE, width=300, height=200)]
    coco = dict(images=images, annotations=anns, categories=categories)
    write_json(folder / "labels.json", coco)
    mask = encode_mask(np.ones((200, 300), dtype=np.uint8))
    write_json(folder / "truth.json", coco | dict(annotations=[anns[0], anns[1]]))
    truth = folder / "truth.json"
    write_review_page(folder / "labels.json", folder, folder / "page", truth, size=64)
    return folder


def synthetic(number, size):
    """Data of a page with made-up boxes."""
    rng = np.random.default_rng(0)
    return dict(
        labels=dict(name="synthetic.json", sha256="0" * 64),
        thumbs=dict(size=size, grid=8),
        categories=[f"category {i}" for i in range(80)],
        images=[f"{i:012d}.jpg" for i in range(number // 5)],
        boxes=dict(
            id=list(range(1, number + 1)),
            place=rng.permutation(number).tolist(),
            image=rng.integers(0, number // 5, number).tolist(),
            category=rng.integers(0, 80, number).tolist(),
            size=rng.integers(0, 3, number).tolist(),
            quality=np.sort(rng.random(number).round(4)).tolist(),
            iou=None,
        ),
    )


def shown(page):
    """Qualities of the tiles, in their order on the screen."""
    texts = page.locator(".figures span:first-child").all_text_contents()
    return [text.removeprefix("quality ") for text in texts]


def status(page):
    return page.locator("#status").text_content()


def in_order(indices):
    return ["–" if QUALITIES[i] is None else f"{QUALITIES[i]:.2f}" for i in indices]


def export(page, path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Export decisions").click()
    assert download.value.suggested_filename == "labels.decisions.json"
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_loads_worst_first_with_inert_names(open_page, folder):
    page = open_page(folder / "page")
    assert shown(page) == in_order(WORST_FIRST)
    names = page.locator(".name").all_text_contents()
    assert names == [HOSTILE, HOSTILE, "cat", "cat", HOSTILE, "cat"]
    assert page.locator(".figures").nth(2).text_content() == "quality 0.50IoU 1.00"
    assert page.locator(".figures").nth(0).text_content() == "quality 0.10IoU –"
    assert page.locator("#category option").nth(1).text_content() == f"{HOSTILE} (3)"
    page.keyboard.press("Enter")
    assert HOSTILE_IMAGE in page.locator("#details").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, script:not([src])").count() == 0


def test_every_box_shows_its_own_thumbnail(open_page, tmp_path):
    """Column, row and sheet of a thumbnail are its amounts of red, green and blue."""
    number, grid, size = 200, 8, 16
    colours = np.zeros((4, grid, grid, 3), dtype=np.uint8)  # BGR
    for axis in range(3):
        steps = np.arange(colours.shape[axis], dtype=np.uint8) * 30 + 20
        colours[..., axis] = np.expand_dims(steps, tuple({0, 1, 2} - {axis}))
    (tmp_path / "sprites").mkdir()
    for i, sheet in enumerate(colours.repeat(size, 1).repeat(size, 2)):
        cv2.imwrite(str(tmp_path / f"sprites/{i:05d}.jpg"), sheet)
    write_page(tmp_path, synthetic(number, size))
    page = open_page(tmp_path)
    page.wait_for_load_state("networkidle")
    painted = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    boxes = [tile.bounding_box() for tile in page.locator(".tile .thumb").all()]
    assert len(boxes) == number
    found = [painted[int(b["y"] + size / 2), int(b["x"] + size / 2)] for b in boxes]
    np.testing.assert_allclose(found, colours.reshape(-1, 3)[:number], atol=5)


@pytest.mark.parametrize(
    "order, indices",
    [
        ("quality, best first", [0, 3, 1, 4, 2, 5]),
        ("order of the file", range(6)),
        ("IoU, lowest first", [1, 0, 2, 4, 3, 5]),
    ],
)
def test_orders(open_page, folder, order, indices):
    page = open_page(folder / "page")
    page.locator("#sort").select_option(order)
    assert shown(page) == in_order(indices)


def test_filters(open_page, folder):
    page = open_page(folder / "page")

    def set_slider(name, value):
        page.locator(name).fill(str(value))

    assert status(page).startswith("6 of 6 boxes")
    page.locator("#category").select_option("cat (3)")
    assert shown(page) == in_order([1, 3, 5]) and status(page).startswith("3 of 6 boxes")
    page.locator("#size").select_option("medium (3)")
    assert shown(page) == in_order([3])
    page.get_by_role("button", name="Reset filters").click()
    page.wait_for_function("document.querySelectorAll('.tile').length === 6")
    set_slider("#high", 0.5)
    assert shown(page) == in_order([2, 4, 1])
    set_slider("#low", 0.3)
    assert shown(page) == in_order([4, 1])
    set_slider("#low", 0.6)  # takes the other slider along
    assert shown(page) == [] and page.locator("#high-value").text_content() == "0.60"
    page.keyboard.press("a")  # nothing to decide about
    page.get_by_role("button", name="Reset filters").click()
    page.wait_for_function("document.querySelectorAll('.tile').length === 6")
    assert "0 accepted · 0 rejected · 0 flagged" in status(page)
    page.locator("#grid").focus()
    page.keyboard.press("r")
    page.locator("#decision").select_option("undecided")
    assert shown(page) == in_order(WORST_FIRST[1:])
    page.locator("#decision").select_option("rejected")
    assert shown(page) == in_order(WORST_FIRST[:1])


def test_the_histogram_counts_what_the_other_filters_leave(open_page, folder):
    page = open_page(folder / "page")
    bars = page.locator("#histogram i")

    def high():
        heights = bars.evaluate_all("bars => bars.map(bar => bar.offsetHeight)")
        return [i for i, height in enumerate(heights) if height > 10]

    assert high() == [5, 15, 25, 35, 45]
    page.locator("#category").select_option("cat (3)")
    page.locator("#low").fill("0.6")
    assert high() == [25, 35]  # the slider does not hide what can be chosen
    assert bars.evaluate_all("bars => bars.filter(b => b.className === 'in').length") == 20
    text = page.locator("#histogram").get_attribute("aria-label")
    assert text == "Histogram of quality: 2 boxes, 0 of them below 0.5"


def test_keys_decide_and_what_is_exported_can_be_applied(open_page, folder, tmp_path):
    page = open_page(folder / "page")
    current = page.locator(".current")
    page.keyboard.press("a")  # 2
    page.keyboard.press("r")  # 4
    assert page.locator(".tile").nth(1).get_attribute("aria-label").endswith("rejected")
    page.keyboard.press("f")  # 1
    page.keyboard.press("a")  # 3
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")  # 3 again
    assert current.get_attribute("aria-label") == "cat, quality 0.70, IoU –, undecided"
    page.keyboard.press("Control+a")
    page.keyboard.press("x")
    page.keyboard.press("End")
    page.keyboard.press("f")  # 5, the last: the current box stays
    assert current.get_attribute("aria-posinset") == "6"
    assert status(page) == "6 of 6 boxes · 1 accepted · 1 rejected · 2 flagged"
    content = export(page, tmp_path / "decisions.json")
    digest = content["labels"].pop("sha256")
    assert len(digest) == 64
    assert content == dict(
        format="mal_mmdet review",
        version=1,
        labels=dict(name="labels.json"),
        accepted=["id2"],
        rejected=["id4"],
        flagged=[101, 105],
    )
    labels = folder / "labels.json"
    apply_review(labels, tmp_path / "decisions.json", tmp_path / "out.json")
    reviews = {a["id"]: a.get("review") for a in read_coco(tmp_path / "out.json")["annotations"]}
    assert reviews == {"id0": None, 101: "flagged", "id2": "accepted", 103: None, 105: "flagged"}


def test_the_keyboard_alone_moves_and_enlarges(open_page, folder):
    page = open_page(folder / "page")
    page.set_viewport_size(dict(width=560, height=600))  # three columns
    page.wait_for_function("document.querySelectorAll('.tile')[3].offsetTop > 0")
    place = page.locator(".current")
    for key, expected in [
        ("ArrowUp", 1),
        ("ArrowRight", 2),
        ("ArrowDown", 5),
        ("ArrowDown", 6),
        ("ArrowUp", 3),
        ("ArrowLeft", 2),
        ("Home", 1),
        ("PageDown", 6),
    ]:
        page.keyboard.press(key)
        assert place.get_attribute("aria-posinset") == str(expected), key
        active = page.locator("#grid").get_attribute("aria-activedescendant")
        assert active == place.get_attribute("id")
    dialog = page.locator("#enlarged")
    page.keyboard.press("Space")
    assert dialog.is_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("f")
    assert "6 of 6" in dialog.text_content()
    page.keyboard.press("Space")  # no button has taken it
    assert not dialog.is_visible()
    assert "0 accepted · 0 rejected · 1 flagged" in status(page)
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Reject").click()
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and "1 rejected · 1 flagged" in status(page)


def test_a_key_in_a_list_of_choices_decides_nothing(open_page, folder):
    page = open_page(folder / "page")
    page.locator("#category").focus()
    page.keyboard.press("a")
    page.locator("#low").focus()
    page.keyboard.press("r")
    assert "0 accepted · 0 rejected" in status(page)


def test_decisions_outlive_the_page_and_can_be_imported(open_page, folder, tmp_path):
    page = open_page(folder / "page")
    page.keyboard.press("a")
    page.keyboard.press("f")
    page.reload()
    assert "1 accepted · 0 rejected · 1 flagged" in status(page)
    content = export(page, tmp_path / "decisions.json")
    page.evaluate("localStorage.clear()")
    page.reload()
    assert "0 accepted · 0 rejected · 0 flagged" in status(page)
    page.keyboard.press("r")  # the first, which the file accepts
    page.keyboard.press("End")
    page.keyboard.press("r")

    def load(text):
        (tmp_path / "in.json").write_text(text)
        page.get_by_label("Import").set_input_files(tmp_path / "in.json")

    for text, message in [
        ("no JSON", "Not imported: the file is not JSON."),
        ("[]", "Not imported: these are no decisions of such a page."),
        (json.dumps(content | dict(labels=dict(name="b"))), "about another file, b."),
        (json.dumps(content | dict(accepted=[1])), "there is no box with the id 1."),
        (json.dumps(content | dict(flagged=None)), 'the list "flagged" is missing.'),
    ]:
        load(text)
        page.wait_for_function(
            "text => document.getElementById('status').textContent.endsWith(text)", arg=message
        )
    load(json.dumps(content))
    page.wait_for_function(
        "document.getElementById('status').textContent.includes('1 accepted · 1 rejected · 1 fl')"
    )
    page.reload()
    assert export(page, tmp_path / "again.json") == content | dict(rejected=[105])


def test_a_hundred_thousand_boxes(open_page, tmp_path):
    number, grid = 100_000, 8
    write_page(tmp_path, synthetic(number, size=128))
    sprites = tmp_path / "sprites"
    sprites.mkdir()
    cv2.imwrite(str(sprites / "one.jpg"), np.zeros((grid, grid, 3), dtype=np.uint8))
    for i in range(-(-number // grid**2)):
        (sprites / f"{i:05d}.jpg").hardlink_to(sprites / "one.jpg")
    page = open_page(tmp_path)
    loaded = []
    page.on("request", lambda request: loaded.append(request.url))
    assert status(page).startswith("100,000 of 100,000 boxes")

    def nodes():
        return page.evaluate("document.querySelectorAll('*').length")

    assert nodes() < 1000
    page.locator("#grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight }")
    last = page.locator(f"[aria-posinset='{number}']")
    last.wait_for()
    assert last.is_visible() and nodes() < 1000
    page.locator("#grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight / 2 }")
    page.locator(f"[aria-posinset='{number // 2}']").wait_for()
    assert nodes() < 1000 and len(loaded) < 20  # of 1563 sheets
    page.locator("#sort").select_option("order of the file")
    page.locator("#category").select_option(index=4)
    count = int(re.match(r"([\d,]+) of", status(page))[1].replace(",", ""))
    assert 1000 < count < 1500 and nodes() < 1000
    page.locator("#grid").focus()
    page.keyboard.press("End")
    page.keyboard.press("f")
    assert page.locator(".current").get_attribute("aria-posinset") == str(count)
    page.reload()
    assert "1 flagged" in status(page)
