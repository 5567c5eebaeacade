"""The report as a person meets it: opened from disk in Chromium, pointed at, typed at, printed."""

import csv

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from dar_probe.files.text import decimal
from dar_probe.reports.figures import study_curves
from dar_probe.reports.pages import analysis, definitions, study
from dar_probe.reports.style import palette
from dar_probe.results import importance, metrics, trajectory
from dar_probe.results.study import aggregate
from dar_probe.results.verdict import judge
from tests.helpers import chromium
from tests.helpers.studies import everything
from tests.helpers.synthetic import dataset, trained
from tests.results.test_interventions import dataset as ablated

HOSTILE = "=1+1</script><img src=x onerror=alert(1)>\n\u202e$\\frac{%{y}" + "x" * 300
READERS = [f"{at} {HOSTILE}" if at else HOSTILE for at in range(13)]
SOURCES = [f"@SUM({at}) {HOSTILE}" for at in range(13)]
BLOCKS, LEVELS = 6, 4


@pytest.fixture(scope="module")
def joined():
    """Three steps of a routed model; several samples, so that there are dots."""
    ds = trained(
        steps=3, blocks=BLOCKS, samples=8, levels=LEVELS, routing="dar", chunk_size=4, name=HOSTILE
    )
    ds["reader_name"] = ("reader", np.array(READERS, dtype=object))
    ds["source_name"] = ("source", np.array(SOURCES, dtype=object))
    return ds


@pytest.fixture(scope="module")
def ds(joined):
    return trajectory.split(joined)[-1][1]


@pytest.fixture(scope="module")
def address(ds, joined, tmp_path_factory):
    found = metrics.compute(ds)
    text = analysis.render(ds, found, judge(ds, found), trajectory=joined)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium.launched() as launched:
        yield launched


class Opened:
    """A page that was opened, what it asked for and what it said on the console."""

    def __init__(self, browser, address: str, **settings) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "offline": True, **settings}
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.requests: list[str] = []
        self.console: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.goto(address)

    def drawn(self) -> Page:
        unfold(self.page)
        for plot in self.page.locator(".plot").all():
            plot.locator(".main-svg").first.wait_for(state="attached")
        unfold(self.page, False)
        return self.page


@pytest.fixture(scope="module")
def whole(browser, address):
    opened = Opened(browser, address)
    opened.drawn()
    yield opened
    opened.context.close()


@pytest.fixture
def shown(whole):
    """Return the page that most tests share, without marks and at the first noise level."""
    sheet = whole.page
    sheet.mouse.move(1, 1)
    sheet.keyboard.press("Escape")
    put(sheet, "input[id$='-level']", 0)
    sheet.locator("#mark-range").evaluate("(range) => { range.value = 0; }")
    unfold(sheet, False)
    unfold(sheet, only=".fold")  # the figures
    yield sheet
    assert whole.console == []
    assert {url for url in whole.requests if not url.startswith("blob:")} == {sheet.url}


def put(sheet: Page, selector: str, value: int) -> None:
    """Move a slider there, as a drag would."""
    sheet.locator(selector).evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }", value
    )


def unfold(sheet: Page, wanted: bool = True, *, only: str = "details") -> None:
    sheet.evaluate(
        "([on, only]) => { for (const part of document.querySelectorAll(only)) part.open = on; }",
        [wanted, only],
    )


def figure(sheet: Page, title: str) -> str:
    """Return the selector of the plot with this title."""
    found = sheet.locator("figure", has=sheet.locator(f"h3:text-is('{title}')"))
    return "#" + str(found.locator(".plot").get_attribute("id"))


def place(sheet: Page, plot: str, across: float, up: float, axes: str = "") -> tuple[float, float]:
    """Return where a point of a panel is in the window; categories count from 0."""
    sheet.locator(plot).scroll_into_view_if_needed()
    x, y = sheet.locator(plot).evaluate(
        """(node, [across, up, axes]) => {
          const { left, top } = node.getBoundingClientRect();
          const { ["xaxis" + axes]: x, ["yaxis" + axes]: y } = node._fullLayout;
          return [left + x._offset + x.l2p(across), top + y._offset + y.l2p(up)];
        }""",
        [across, up, axes],
    )
    return float(x), float(y)


def cells(sheet: Page, plot: str, trace: int) -> np.ndarray:
    """Return the values of a map as plotly has them; None is NaN."""
    found = sheet.locator(plot).evaluate(
        "(node, at) => node._fullData[at].z.map((row) => Array.from(row))", trace
    )
    return np.array(found, dtype=float)


def shares(ds) -> np.ndarray:
    """Return the importances that are shown, (levels, readers, sources)."""
    found = importance.importance(ds)
    return found.where(found.notnull().sum("source") >= 2).values


def certain(ds) -> np.ndarray:
    """Return the cells with a dot, (levels, readers, sources): their sign is no chance."""
    return ~importance.below_null(ds).values & (np.nan_to_num(shares(ds)) > 0)


def agree(sheet: Page, plot: str, expected: np.ndarray) -> None:
    """Check that a map's dots lie in the middle of the expected cells, round and of one size."""
    found = sheet.locator(plot).evaluate(
        """(node) => {
          const home = node.getBoundingClientRect();
          const { xaxis: x, yaxis: y } = node._fullLayout;
          return [...node.querySelectorAll(".scatterlayer .point")].map((dot) => {
            const { left, top, width, height } = dot.getBoundingClientRect();
            const across = left + width / 2 - home.left - x._offset;
            const down = top + height / 2 - home.top - y._offset;
            return [y.p2l(down), x.p2l(across), width, height];
          });
        }"""
    )
    places = np.array(found).reshape(-1, 4)
    shown = [tuple(row) for row in np.rint(places[:, :2]).astype(int)]
    assert sorted(shown) == sorted(map(tuple, np.argwhere(expected)))
    np.testing.assert_allclose(places[:, :2], np.rint(places[:, :2]), atol=0.05)
    np.testing.assert_allclose(places[:, 2:], places[0, 2] if len(places) else 0, atol=0.01)


def lines(sheet: Page, button) -> list[list[str]]:
    with sheet.expect_download() as started:
        button.click()
    with open(started.value.path(), encoding="utf-8", newline="") as file:
        text = file.read()
    assert started.value.suggested_filename.endswith(".csv")
    assert text.endswith("\r\n")
    return list(csv.reader(text.splitlines(), strict=True))


def test_a_block_under_the_pointer_is_marked_in_every_panel(shown, ds):
    plot = figure(shown, "Hidden-state RMS")
    x, y = place(shown, plot, 1, 4)  # block 4
    shown.mouse.move(x, y)
    bar = shown.locator(".bar output")
    expect(bar).to_contain_text("Block 4; RMS")
    for name, word in (("rms", "RMS"), ("grad_rms", "gradient"), ("cosine", "cosine")):
        found = metrics.profile(ds, name).sel(block=4)
        value, low, high = (decimal(float(found[key])) for key in ("value", "low", "high"))
        expect(bar).to_contain_text(f"{word} {value} [{low}, {high}]")
    box = shown.locator(f".frame:has({plot}) .mark.block:visible").bounding_box()
    assert box["y"] < y < box["y"] + box["height"] < y + 60
    for frame in shown.locator(".frame").all():
        reads = frame.locator(".plot").get_attribute("aria-label")
        shows = not reads.startswith(("Symptoms over training", "One reader", "Sources"))
        if shows:
            assert frame.locator(".mark.block:visible").count() >= 1, reads
    depth = shown.locator(figure(shown, "Depth")).locator("xpath=..")
    assert depth.locator(".mark.block:visible").count() == 3
    left = place(shown, figure(shown, "Depth"), 4, 0, "2")[0]
    middle = depth.locator(".mark.block").nth(1).bounding_box()
    assert middle["x"] + middle["width"] / 2 == pytest.approx(left, abs=1)
    shown.keyboard.press("Escape")
    assert shown.locator(".mark.block:visible").count() == 0
    expect(bar).to_contain_text("No block is marked")


def test_marking_takes_less_than_a_frame(shown):
    times = shown.locator("#mark-range").evaluate(
        """(range) => Array.from({ length: 14 }, (_, at) => {
          const start = performance.now();
          range.value = at % 7;
          range.dispatchEvent(new Event("input"));
          document.body.getBoundingClientRect();
          return performance.now() - start;
        })"""
    )
    assert min(times) < 16


def test_a_level_is_one_frame_of_the_matrix_and_a_column_of_the_maps(shown, ds):
    plot = figure(shown, "Every reader and every source")
    assert shown.locator(plot).evaluate("(node) => node.data.length") == 3  # two maps, the dots
    np.testing.assert_allclose(cells(shown, plot, 0), shares(ds)[0], rtol=1e-6)
    shown.locator("input[id$='-level']").focus()
    shown.keyboard.press("End")
    np.testing.assert_allclose(cells(shown, plot, 0), shares(ds)[-1], rtol=1e-6)
    route = metrics.over_noise(ds, "route").transpose("noise_level", "reader", "source").values
    np.testing.assert_allclose(cells(shown, plot, 1), route[-1], rtol=1e-6)
    marks = shown.locator(plot).evaluate("(node) => node._fullData[0].text")
    expected = certain(ds)[-1]
    np.testing.assert_array_equal(np.array(marks) != "", expected)
    assert expected.any()
    assert (certain(ds)[0] != expected).any()
    agree(shown, plot, expected)
    expect(shown.locator("output[for$='-level']")).to_have_text("0.99")
    heat = figure(shown, "Hidden-state RMS")
    x, _ = place(shown, heat, LEVELS - 1, 0)
    box = shown.locator(f".frame:has({heat}) .mark.level:visible").bounding_box()
    assert box["x"] < x < box["x"] + box["width"]
    shown.mouse.click(*place(shown, heat, 1, 0))  # a column of any map is a level
    np.testing.assert_allclose(cells(shown, plot, 0), shares(ds)[1], rtol=1e-6)


def test_play_walks_to_the_last_level_and_pauses(shown):
    play, level = shown.locator(".play"), shown.locator("output[for$='-level']")
    play.click()
    expect(play).to_have_text("Pause")
    expect(level).not_to_have_text("0.01")
    play.click()
    expect(play).to_have_text("Play")
    play.click()
    expect(level).to_have_text("0.99")
    expect(play).to_have_text("Play")


def test_a_reader_is_shown_over_all_levels(shown, ds):
    matrix = figure(shown, "Every reader and every source")
    plot = figure(shown, "One reader over noise levels")
    select = shown.locator("select")

    def agrees(reader: int) -> None:
        expect(select).to_have_value(str(reader))
        offered = np.isfinite(shares(ds)[:, reader]).any(axis=0)
        offered |= np.isfinite(ds["route"].values[:, :, reader]).any(axis=(0, 1))
        expected = shares(ds)[:, reader, offered].T
        np.testing.assert_allclose(cells(shown, plot, 0), expected, rtol=1e-6)
        agree(shown, plot, certain(ds)[:, reader, offered].T)
        kinds = "(node) => ['xaxis', 'yaxis2'].map((axis) => node._fullLayout[axis].type)"
        assert shown.locator(plot).evaluate(kinds) == ["category"] * 2
        said = shown.locator(plot).get_attribute("aria-label")
        at = int(np.nanargmax(shares(ds)[0, reader]))
        assert f"@SUM({at}) =1+1</script>" in said
        assert f"({shares(ds)[0, reader, at]:.3f}) at noise level 0.01" in said

    shown.mouse.click(*place(shown, matrix, 0, 7))
    agrees(7)
    select.select_option("3")
    agrees(3)
    expect(shown.locator(".bar output")).to_contain_text("Block 2;")  # that reader's
    assert select.locator("option").count() == 13


def test_the_spread_over_samples_is_switched(shown, ds):
    plot = figure(shown, "Depth")
    count = "(node) => node._fullData.filter((trace) => trace.visible).length"
    before = shown.locator(plot).evaluate(count)
    column = shown.locator("#table-blocks thead .spread").first
    unfold(shown)
    expect(column).to_be_hidden()
    shown.get_by_label("Show the middle 90 % of the samples").check()
    assert shown.locator(plot).evaluate(count) == before + 3
    expect(column).to_be_visible()
    ends = np.quantile(metrics.per_sample(ds, "rms").sel(block=3), [0.05, 0.95])
    band = shown.locator(plot).evaluate(
        "(node) => [node._fullData[0].x, node._fullData[0].y].map((a) => Array.from(a))"
    )
    drawn = sorted(y for x, y in zip(*band, strict=True) if x == 3)
    np.testing.assert_allclose(drawn, ends, rtol=1e-12)
    shown.get_by_label("Show the middle 90 % of the samples").uncheck()
    assert shown.locator(plot).evaluate(count) == before


def test_tables_sort_and_what_is_unknown_comes_last(shown):
    unfold(shown)
    table = shown.locator("#table-blocks")
    head = table.locator("th[data-name='cosine']")
    at = head.evaluate("(cell) => cell.cellIndex")
    read = "(table, at) => [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.value)"
    for direction, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button.sort").click()
        expect(head).to_have_attribute("aria-sort", direction)
        values = table.evaluate(read, at)
        assert values[-1] == ""  # block 0 has no neighbour
        known = sign * np.array(values[:-1], dtype=float)
        assert (np.diff(known) >= 0).all()
    table.locator("th[data-name='block'] button.sort").click()
    assert table.evaluate(read, 0) == [str(at) for at in range(BLOCKS + 1)]
    assert table.locator("[aria-sort]").count() == 1


def test_exported_numbers_are_those_of_the_dataset(shown, ds):
    unfold(shown)
    head, *rows = lines(
        shown, shown.locator("#table-blocks").locator("xpath=../..").locator(".csv")
    )
    for name in ("rms", "grad_rms", "cosine"):
        found = metrics.profile(ds, name)
        for part in ("value", "low", "high"):
            title = name if part == "value" else f"{name} {part}"
            exported = [float(row[head.index(title)] or "nan") for row in rows]
            np.testing.assert_array_equal(exported, found[part].values)
    slider = shown.locator(".controls", has=shown.locator(".play"))
    head, *rows = lines(shown, slider.get_by_text("Export CSV"))
    assert head == ["noise_level", "reader", "source", "importance", "route", "consistent_sign"]
    known = np.isfinite(shares(ds)) | np.isfinite(ds["route"].values).any(axis=1)
    assert len(rows) == known.sum()
    exported = [float(row[3] or "nan") for row in rows]
    np.testing.assert_allclose(exported, shares(ds)[known], rtol=1e-6)
    np.testing.assert_array_equal([row[5] == "1" for row in rows], certain(ds)[known])


def test_an_exported_name_is_no_formula(shown):
    unfold(shown)
    _, *rows = lines(shown, shown.locator("#table-readers").locator("xpath=../..").locator(".csv"))
    assert rows[0][0].startswith("'=1+1</script><img")
    assert rows[1][0].startswith("1 =1+1")
    texts = [cell for row in rows for cell in row if not cell.replace(".", "").isdigit()]
    assert not [cell for cell in texts if cell[:1] in ("=", "+", "@")]
    assert [cell for cell in texts if cell.startswith("'@SUM(")]


def test_every_number_opens_its_definition(shown):
    for button in shown.locator("button[popovertarget]").all():
        key = button.get_attribute("popovertarget")
        assert shown.locator(f"#{key}").count() == 1
    for head in shown.locator("table.numeric th[data-kind]").all():
        assert head.locator("button[popovertarget]").count() == 1
    card = shown.locator(".card").first
    meaning = shown.locator("#define-metric-inflation")
    shown.evaluate("scrollTo(0, 0)")
    put(shown, "#mark-range", 2)
    expect(meaning).to_be_hidden()
    card.locator(".value .define").click()
    expect(meaning).to_be_visible()
    text = definitions.definitions()["metric:inflation"].text
    expect(meaning).to_contain_text(text)
    expect(meaning).to_contain_text("arXiv 2605.20708")
    shown.keyboard.press("Escape")
    expect(meaning).to_be_hidden()
    expect(shown.locator(".bar output")).to_contain_text("Block 2")  # it closed that alone


def test_everything_is_reached_by_the_keyboard(shown):
    shown.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    wanted = {"mark-range", "play", "select", "level", "spread", "define", "summary", "sort"}
    found = set()
    for _ in range(200):
        shown.keyboard.press("Tab")
        words = shown.evaluate(
            "`${document.activeElement.id} ${document.activeElement.className} "
            "${document.activeElement.tagName.toLowerCase()}`"
        )
        found |= {word for word in wanted if word in words}
        if found == wanted:
            break
    assert found == wanted
    shown.locator("#mark-range").focus()
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowRight")
    expect(shown.locator(".bar output")).to_contain_text("Block 2; RMS")
    assert "block 2" in shown.locator("#mark-range").get_attribute("aria-valuetext")
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.evaluate(ring) == "solid"
    shown.keyboard.press("Escape")
    expect(shown.locator(".bar output")).to_contain_text("No block is marked")
    shown.mouse.move(*place(shown, figure(shown, "Hidden-state RMS"), 1, 5))
    shown.evaluate("document.activeElement.blur()")
    shown.keyboard.press("ArrowLeft")  # from where the pointer left it
    expect(shown.locator(".bar output")).to_contain_text("Block 4;")


def test_names_stay_text_everywhere(shown):
    assert shown.locator("img").count() == 0
    expect(shown.locator("select option").first).to_contain_text("=1+1</script><img src=x")
    assert shown.evaluate("document.body.innerText.includes('\\u202e')") is False


def test_figures_say_in_words_what_they_show(shown, ds):
    labels = [plot.get_attribute("aria-label") for plot in shown.locator("[role=img]").all()]
    assert len(labels) == shown.locator("figure").count()
    value = metrics.profile(ds, "rms")["value"]
    ends = [decimal(float(value.sel(block=block))) for block in (1, BLOCKS)]
    depth = shown.locator(figure(shown, "Depth")).get_attribute("aria-label")
    assert f"from {ends[0]} at 1 to {ends[1]} at {BLOCKS}" in depth
    assert all(any(letter.isdigit() for letter in label) for label in labels)


def test_a_phone_shows_the_page_without_sideways_scrolling(browser, address):
    size = {"width": 400, "height": 800}
    opened = Opened(browser, address, viewport=size, has_touch=True, reduced_motion="reduce")
    sheet = opened.drawn()
    unfold(sheet)
    heat = figure(sheet, "Hidden-state RMS")
    sheet.touchscreen.tap(*place(sheet, heat, 1, 3))
    expect(sheet.locator(".bar output")).to_contain_text("Block 3;")
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 400
    sheet.locator(".card .define").first.click()
    box = sheet.locator("#define-metric-inflation").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 400
    sheet.wait_for_timeout(600)
    expect(sheet.locator(".play")).to_have_text("Play")  # nothing moves by itself
    assert opened.console == []
    opened.context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_a_matrix_fills_the_window_and_comes_back_by_the_keyboard(browser, address, width):
    opened = Opened(browser, address, viewport={"width": width, "height": 800})
    sheet = opened.drawn()
    plot = figure(sheet, "Every reader and every source")
    button = sheet.locator(f"figure:has({plot}) .enlarge")
    before = sheet.locator(plot).bounding_box()
    button.focus()
    sheet.keyboard.press("Enter")
    dialog = sheet.locator("dialog.sheet")
    expect(dialog).to_be_visible()
    size = sheet.locator(plot).evaluate("(node) => node._fullLayout.width")
    assert size >= 900 > before["width"] or width == 1280
    assert dialog.bounding_box()["width"] == width
    axes = sheet.locator(plot).evaluate(
        "({ _fullLayout: { xaxis, xaxis2 } }) => [xaxis.domain[1], xaxis2.domain[0]]"
    )
    assert axes[0] < axes[1]  # side by side also on a phone
    level = dialog.locator("input[id$='-level']")
    level.focus()
    sheet.keyboard.press("End")  # its controls came along
    expect(dialog.locator("output").first).to_have_text("0.99")
    put(sheet, "#mark-range", 2)
    sheet.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(sheet.locator(".bar output")).to_contain_text("Block 2")  # it closed the map alone
    assert sheet.locator(plot).bounding_box()["width"] == before["width"]
    assert sheet.locator(plot).bounding_box()["height"] == before["height"]
    expect(button).to_have_text("Enlarge")
    expect(button).to_be_focused()
    assert opened.console == []
    opened.context.close()


def routed():
    return dataset(blocks=5, samples=8, levels=6, routing="dar", chunk_size=4)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("made", [routed, ablated])
def test_no_text_of_a_figure_is_clipped(browser, tmp_path, width, made):
    ds = made()
    found = metrics.compute(ds)
    path = tmp_path / "report.html"
    path.write_text(analysis.render(ds, found, judge(ds, found)))
    opened = Opened(browser, path.as_uri(), viewport={"width": width, "height": 800})
    sheet = opened.drawn()
    unfold(sheet)
    sheet.wait_for_timeout(300)
    clipped = sheet.evaluate(
        """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
          const home = plot.getBoundingClientRect();
          return [...plot.querySelectorAll("svg text")].flatMap((text) => {
            const { left, right, top, bottom, width } = text.getBoundingClientRect();
            const inside = left >= home.left - 1 && right <= home.right + 1
              && top >= home.top - 1 && bottom <= home.bottom + 1;
            return width && !inside ? [text.textContent] : [];
          });
        })"""
    )
    assert clipped == []
    opened.context.close()


def test_dark_and_paper_have_their_own_colours(browser, address):
    opened = Opened(browser, address, color_scheme="dark")
    sheet = opened.drawn()
    plot = figure(sheet, "Depth")
    heat = figure(sheet, "Sources over noise levels")
    colours = "(node) => node._fullLayout.coloraxis.colorscale.at(-1)[1]"
    largest = {"dark": palette.DARK_MAPS["mako_r"][-1], "light": palette.COLOUR_MAPS["mako_r"][-1]}
    assert sheet.locator(heat).evaluate(colours) == largest["dark"]
    ink = "(node) => [node._fullLayout.font.color, getComputedStyle(document.body).backgroundColor]"
    assert sheet.locator(plot).evaluate(ink) == ["#e7ebf0", "rgb(18, 23, 29)"]
    put(sheet, "input[id$='-level']", 2)
    printed = sheet.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 3
    assert sheet.locator(plot).evaluate(ink) == ["#e7ebf0", "rgb(18, 23, 29)"]  # as it was
    assert sheet.locator("details[open]").count() == 0
    sheet.emulate_media(media="print")
    for hidden in (".bar", ".play", "select", ".csv", ".define"):
        expect(sheet.locator(hidden).first).to_be_hidden()
    expect(sheet.locator("output[for$='-level']")).to_be_visible()  # what is printed is named
    sheet.emulate_media(media="screen", color_scheme="light")
    assert sheet.locator(plot).evaluate(ink) == ["#1b2430", "rgb(255, 255, 255)"]
    assert sheet.locator(heat).evaluate(colours) == largest["light"]
    sheet.emulate_media(color_scheme="dark")
    sheet.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert sheet.locator(heat).evaluate(colours) == largest["light"]  # paper is light
    sheet.evaluate("dispatchEvent(new Event('afterprint'))")
    assert sheet.locator(heat).evaluate(colours) == largest["dark"]
    assert opened.console == []
    opened.context.close()


def test_verdict_tables_and_definitions_need_no_script(browser, address):
    opened = Opened(browser, address, java_script_enabled=False)
    assert opened.page.locator(".still polyline").count() == 3
    expect(opened.page.locator(".still").first).to_be_visible()
    expect(opened.page.locator(".verdict p")).to_be_visible()
    opened.page.locator(".card .define").first.click()
    expect(opened.page.locator("#define-metric-inflation")).to_be_visible()
    opened.page.keyboard.press("Escape")
    opened.page.locator("summary", has_text="Every block").click()
    expect(opened.page.locator("#table-blocks tbody tr")).to_have_count(BLOCKS + 1)
    opened.context.close()


def test_the_still_is_the_figure_that_follows_it(shown, browser, address):
    opened = Opened(browser, address, java_script_enabled=False)
    assert shown.locator(".still").count() == 0
    plot = figure(shown, "Depth")
    for at, axes in enumerate(("", "2", "3")):
        alive = shown.locator(plot).evaluate(
            """(node, axes) => {
              const { ["xaxis" + axes]: x, ["yaxis" + axes]: y } = node._fullLayout;
              const line = node._fullData.find((trace) => trace.mode === "lines+markers"
                && trace.yaxis === "y" + axes);
              return Array.from(line.x, (value, at) =>
                [x._offset + x.d2p(value), y._offset + y.d2p(line.y[at])]);
            }""",
            axes,
        )
        text = opened.page.locator(".still polyline").nth(at).get_attribute("points")
        still = [[float(part) for part in pair.split(",")] for pair in text.split()]
        np.testing.assert_allclose(still, alive, atol=12)
    opened.context.close()


def test_the_first_screen_holds_name_verdict_symptoms_and_assumptions(shown):
    shown.evaluate("scrollTo(0, 0)")
    for selector in ("h1", ".verdict p", ".card:nth-child(3) .about", ".assumed li"):
        box = shown.locator(selector).first.bounding_box()
        assert 0 <= box["y"]
        assert box["y"] + box["height"] < 800


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    """The page of a model of 28 blocks with a router."""
    ds = dataset(blocks=28, samples=8, levels=10, routing="dar", chunk_size=4)
    found = metrics.compute(ds)
    path = tmp_path_factory.mktemp("ordinary") / "report.html"
    path.write_text(analysis.render(ds, found, judge(ds, found)))
    return path.as_uri()


def test_an_ordinary_page_is_five_screens_long_and_draws_what_is_opened(browser, ordinary):
    opened = Opened(browser, ordinary)
    sheet = opened.page
    sheet.locator(f"{figure(sheet, 'Every reader and every source')} .main-svg").first.wait_for()
    assert sheet.evaluate("document.documentElement.scrollHeight") <= 5 * 800
    folded = figure(sheet, "Hidden-state RMS")
    assert sheet.locator(f"{folded} .main-svg").count() == 0
    sheet.locator("summary", has_text="Every variable over depth").focus()
    sheet.keyboard.press("Enter")
    sheet.locator(f"{folded} .main-svg").first.wait_for()
    assert sheet.locator(folded).evaluate("(node) => node._fullLayout.width") > 450
    one = figure(sheet, "One reader over noise levels")
    expect(sheet.locator(one)).to_be_hidden()
    sheet.mouse.click(*place(sheet, figure(sheet, "Every reader and every source"), 0, 7))
    expect(sheet.locator(one)).to_be_visible()  # a row of the matrix opens it
    expect(sheet.locator("select")).to_have_value("7")
    assert opened.console == []
    opened.context.close()


def test_the_contents_open_what_is_folded(browser, ordinary):
    opened = Opened(browser, ordinary)
    sheet = opened.page
    link = sheet.locator(".contents a", has_text="Every variable over depth")
    link.focus()
    sheet.keyboard.press("Enter")
    fold = sheet.locator(".fold[open]")
    expect(fold).to_have_count(1)
    sheet.wait_for_timeout(200)
    assert 0 <= fold.bounding_box()["y"] < 400
    opened.context.close()


def test_paper_has_every_figure_and_the_heads_of_tables_on_every_page(browser, ordinary):
    opened = Opened(browser, ordinary)
    sheet = opened.page
    sheet.evaluate("dispatchEvent(new Event('beforeprint'))")
    sheet.emulate_media(media="print")
    assert sheet.locator("details:not([open])").count() == 0
    assert sheet.locator(".plot .main-svg .bglayer").count() >= 13
    for table in sheet.locator("table:has(thead)").all():
        head = table.locator("thead")
        assert head.evaluate("(head) => getComputedStyle(head).display") == "table-header-group"
        assert head.locator("button:visible").count() == 0  # no browser repeats a head with one
    sections = sheet.locator("main > section").evaluate_all("(all) => all.map((one) => one.id)")
    assert sections[-1] == "provenance"
    small, normal = (
        sheet.locator(part).first.evaluate("(one) => parseFloat(getComputedStyle(one).fontSize)")
        for part in (".provenance td", ".findings td")
    )
    assert small < 0.8 * normal
    sheet.emulate_media(media="screen")
    sheet.evaluate("dispatchEvent(new Event('afterprint'))")
    assert sheet.locator("table.data thead button.sort").count() > 20
    assert sheet.locator("details[open]").count() == 0
    opened.context.close()


def test_a_wide_table_shows_that_it_goes_on_and_takes_the_focus(browser, ordinary):
    opened = Opened(browser, ordinary, viewport={"width": 360, "height": 800})
    sheet = opened.page
    unfold(sheet)
    region = sheet.locator(".scroll:has(#table-readers)")
    assert region.evaluate("(one) => one.scrollWidth > one.clientWidth")
    assert region.get_attribute("role") == "region" and region.get_attribute("aria-label")
    style = "(one) => getComputedStyle(one).backgroundAttachment"
    assert region.evaluate(style) == "local, local, scroll, scroll"
    region.focus()
    sheet.keyboard.press("ArrowRight")
    for _ in range(50):  # the page's policy forbids the eval of wait_for_function
        if region.evaluate("(one) => one.scrollLeft > 0"):
            break
        sheet.wait_for_timeout(100)
    assert region.evaluate("(one) => one.scrollLeft > 0")
    opened.context.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_of_a_study_draws_all_of_it(browser, tmp_path, width):
    found = aggregate.Results(everything())
    path = tmp_path / "reproduce.html"
    path.write_text(study.render(found, study_curves.drawings(found)), encoding="utf-8")
    opened = Opened(browser, path.as_uri(), viewport={"width": width, "height": 800})
    sheet = opened.drawn()
    assert sheet.locator(".plot .main-svg").count() >= 7
    assert sheet.evaluate("document.documentElement.scrollWidth") <= width
    table = sheet.locator("#table-single")
    table.locator("th", has_text="Scheme").first.locator("button").first.click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower) and "</script>" in "".join(names)
    assert opened.console == [] and opened.requests == [path.as_uri()]
    opened.context.close()


def test_a_browser_that_cannot_unpack_says_where_the_figures_are(browser, address):
    """From before 2023; everything that needs no drawing is there all the same."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    context.add_init_script("delete window.DecompressionStream")
    sheet, errors = context.new_page(), []
    sheet.on("pageerror", lambda error: errors.append(str(error)))
    sheet.goto(address)
    sheet.get_by_text("This browser is too old").first.wait_for(state="attached")
    assert sheet.locator(".main-svg").count() == 0
    assert sheet.locator("svg.still, .plot svg").count() >= 1, "stills of line figures stay"
    assert sheet.locator("table.data").count() >= 1 and errors == []
    context.close()
