"""The app as a user has it: started from the command line, used in a headless Chromium.

`APP_SCREENSHOT=$PWD/docs/images/app.png make test-app` takes the picture of the README anew.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import crate_mae_hf

APP = Path(__file__).parents[2] / "app" / "app.py"
EXAMPLES = crate_mae_hf.pretrained.path("fashion_mnist") / "images"
BROWSERS = ("google-chrome", "chromium", "chromium-browser")
TIMEOUT = 20_000  # milliseconds
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
QUIET += ("disable-component-update", "disable-sync")


def run_app(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, APP, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("app") / "log.txt"


@pytest.fixture(scope="module")
def address(log) -> Iterator[str]:
    """The app on the shipped checkpoint, on a free port, as its log gives it."""
    with log.open("w") as file:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, APP], stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield found.group()
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert executable, f"none of {', '.join(BROWSERS)} is installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[f"--{flag}" for flag in QUIET])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, log) -> Iterator[Page]:
    """The page with its first reconstruction; afterwards, nothing may have gone wrong in browser or server."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    inside = (address, f"ws{address[4:]}", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(f"outside: {r.url}"))
    page.on("response", lambda response: None if response.ok else problems.append(f"{response.status}: {response.url}"))
    page.goto(address)
    picture(page, "answer")
    yield page
    page.close()
    assert problems == []
    assert "Traceback" not in log.read_text()
    assert "Error" not in log.read_text()


def picture(page: Page, name: str) -> bytes:
    """Content of the picture that is shown."""
    source = page.locator(f"#{name} img").first.get_attribute("src")
    return page.request.get(source).body()


def wait_for_change(page: Page, name: str, act: Callable[[], object]) -> None:
    """Do something, and wait until a picture is another than before; prints how long that took."""
    shown = page.locator(f"#{name} img").first
    before = str(shown.get_attribute("src"))
    start = time.perf_counter()
    act()
    expect(shown).not_to_have_attribute("src", before, timeout=TIMEOUT)
    print(f"{time.perf_counter() - start:.2f} s until another {name}")


def wait_for_caption(page: Page, text: str, act: Callable[[], object]) -> None:
    """Do something, and wait until a text is below the pictures; prints how long that took."""
    caption = page.locator("#caption")
    expect(caption).not_to_contain_text(text)
    start = time.perf_counter()
    act()
    expect(caption).to_contain_text(text, timeout=TIMEOUT)
    print(f"{time.perf_counter() - start:.2f} s until {text!r}")


def wait_for_message(page: Page, text: str) -> None:
    page.get_by_test_id("toast-body").filter(has_text=text).first.wait_for(timeout=TIMEOUT)


def upload(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture").click()
    chooser.value.set_files(path)


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(f"number input for {label}")
    field.fill(value)
    field.press("Enter")
    field.blur()


def paint(page: Page, strokes) -> None:
    """Drag the brush over the canvas, in parts of its width and height."""
    box = page.locator("#canvas canvas").last.bounding_box()
    for (x0, y0), (x1, y1) in strokes:
        page.mouse.move(box["x"] + box["width"] * x0, box["y"] + box["height"] * y0)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * x1, box["y"] + box["height"] * y1, steps=2)
        page.mouse.up()


def test_a_picture_is_uploaded_masked_and_reconstructed(page):
    first = picture(page, "answer")
    expect(page.locator("#caption")).to_contain_text("8 of 16 patches")
    if path := os.environ.get("APP_SCREENSHOT"):
        page.wait_for_timeout(1000)
        page.screenshot(path=path)
    wait_for_change(page, "answer", lambda: upload(page, EXAMPLES / "2.png"))
    assert picture(page, "answer") != first
    wait_for_caption(page, "4 of 16", lambda: set_number(page, "Mask ratio", "0.25"))
    scattered = picture(page, "masked")
    wait_for_change(page, "masked", lambda: page.get_by_label("one block").click())
    assert picture(page, "masked") != scattered
    wait_for_change(page, "masked", lambda: page.get_by_label("Seed").fill("4"))
    honest = picture(page, "answer")
    wait_for_change(page, "answer", lambda: page.get_by_label("the original (cheats)").click())
    assert picture(page, "answer") != honest
    wait_for_change(page, "answer", lambda: page.locator("#examples button").nth(4).click())


def test_masks_are_painted_by_hand(page):
    wait_for_caption(page, "Nothing is masked", lambda: page.get_by_label("by hand").click())
    page.wait_for_selector("#canvas canvas")
    page.wait_for_timeout(1500)  # until the canvas has its picture
    mask = page.get_by_role("button", name="Mask what is painted over")
    paint(page, [((0.3, 0.4), (0.6, 0.4))])
    wait_for_caption(page, "3 of 16", mask.click)
    before = picture(page, "answer")
    paint(page, [((0.3, 0.65), (0.6, 0.65))])
    wait_for_caption(page, "6 of 16", mask.click)
    assert picture(page, "answer") != before
    paint(page, [((0.12, y), (0.88, y)) for y in (0.12, 0.4, 0.65, 0.88)])
    mask.click()
    wait_for_message(page, "must leave a patch visible")
    wait_for_caption(page, "8 of 16", lambda: page.get_by_label("random patches").click())


@pytest.mark.parametrize(
    ("tab", "names"),
    [
        ("Attention", ["heads", "overlays"]),
        ("Principal components", ["components"]),
        ("Layers", ["rates"]),
        ("Steps", ["steps"]),
    ],
)
def test_every_tab_has_its_figures(page, tab, names):
    start = time.perf_counter()
    page.get_by_role("tab", name=tab).click()
    for name in names:
        page.locator(f"#{name} img").wait_for(timeout=TIMEOUT)
    print(f"{time.perf_counter() - start:.2f} s until {tab}")
    wait_for_change(page, names[-1], lambda: page.locator("#examples button").nth(3).click())
    if tab in ("Attention", "Principal components"):
        wait_for_change(page, names[0], lambda: set_number(page, "Encoder layer", "1"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken.png", "Cannot read the image broken.png"), ("tiny.png", "1 x 1 pixels, smaller than a patch of 7 x 7")],
)
def test_what_is_no_picture_gets_a_message(page, tmp_path, name, message):
    (tmp_path / "broken.png").write_text("no picture")
    Image.new("L", (1, 1)).save(tmp_path / "tiny.png")
    before = picture(page, "answer")
    upload(page, tmp_path / name)
    wait_for_message(page, message)
    assert picture(page, "answer") == before


def test_pictures_of_other_kinds_are_taken(page, tmp_path):
    with Image.open(EXAMPLES / "1.png") as example:
        grey = example.convert("L").resize((50, 40))
    transparent = grey.convert("RGBA")
    transparent.putalpha(grey)
    transparent.save(tmp_path / "transparent.png")
    wide = torch.arange(40 * 50).view(40, 50) * 32
    Image.fromarray(wide.to(torch.uint16).numpy()).save(tmp_path / "sixteen.png")
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("transparent.png", "sixteen.png", "cmyk.jpg"):
        wait_for_change(page, "answer", lambda name=name: upload(page, tmp_path / name))
    assert page.get_by_test_id("toast-body").count() == 0


def test_another_model_is_loaded(page, pretrained, classifier):
    page.get_by_text("Model", exact=True).click()
    load = page.get_by_role("button", name="Load", exact=True)
    field = page.get_by_label("Folder, or repository on the Hub")
    for name, message in (("/no/such/folder", "cannot load /no/such/folder"), (classifier, "lacks")):
        field.fill(str(name))
        load.click()
        wait_for_message(page, message)
    field.fill(str(pretrained))
    wait_for_change(page, "answer", load.click)
    assert page.get_by_label("not needed: the model predicts the pixels").is_checked()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "/no/such/folder"), "error: `model`: cannot load /no/such/folder"),
        (("--port", "99999"), "error: `port` must lie in [1, 65535], got 99999."),
    ],
)
def test_errors_in_one_line(arguments, message):
    result = run_app(*arguments)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr
