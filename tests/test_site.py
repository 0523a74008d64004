"""The site: what is generated equals the program, it builds, and it asks no other host."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import click
import pytest
from test_docs import ROOT

import adadelta_cli
from adadelta_cli.cli.main import adadelta
from adadelta_cli.guide import keys

DOCS = ROOT / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
OUTSIDE = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*"
)


def loaded(name):
    """Import a module of docs/tools, which is no package."""
    path = DOCS / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = loaded("generated")
REFERENCE = GENERATED.commands()


def plain(markdown):
    """Return what a reader sees of a generated text, on one line."""
    return " ".join(html.unescape(re.sub(r"\\(.)", r"\1", markdown)).split())


@pytest.mark.parametrize("name", ["", *adadelta.commands])
def test_the_reference_has_every_option(name):
    """Each option, argument and help text of a command is in its section."""
    command = adadelta.commands[name] if name else adadelta
    title = f"adadelta {name}".strip()
    text = plain(
        re.search(rf"^## `{title}`\n(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)[1]
    )
    context = click.Context(command, info_name=title, **adadelta.context_settings)
    for parameter in command.get_params(context):
        for option in (*parameter.opts, *parameter.secondary_opts):
            shown = option if option.startswith("-") else parameter.make_metavar(context)
            assert shown in text
        assert plain(getattr(parameter, "help", None) or "") in text
    assert plain(command.help.replace("\b", "")) in text.replace("`", "'") or all(
        plain(line.replace("\b", "")) in text for line in command.help.splitlines()
    )


def test_the_reference_shows_no_default_of_this_machine():
    """The same page is made everywhere."""
    assert str(ROOT) not in REFERENCE
    assert "cpu|gpu|gpu:N" in plain(REFERENCE)


def test_the_page_of_keys_has_every_key_of_the_schema():
    """With its description, as in configs/schema.json and in `adadelta explain`."""
    page = plain(GENERATED.config_keys())
    schema = json.loads((ROOT / "configs" / "schema.json").read_text())
    sections = [each for name, each in schema["$defs"].items() if name != "Config"]
    for key, node in (item for each in sections for item in each["properties"].items()):
        assert f".{key}`" in page or key == "name"  # which is the column `of`
        assert plain(node.get("description", "")) in page or key == "name"
    for each in keys.all_keys():
        cells = (each.key, each.allowed, each.meaning, each.default or "required")
        assert all(plain(cell) in page for cell in cells), each


def test_generated_text_has_a_place():
    """Each text has one page with its marker."""
    pages = {page: page.read_text() for page in DOCS.glob("*.md")}
    for name in GENERATED.GENERATED:
        assert sum(f"<!-- generated: {name} -->" in text for text in pages.values()) == 1


def test_links_out_of_the_pages_lead_to_the_repository(caplog):
    """A picture is taken into the site; a file that does not exist is a warning."""
    links = "[a](../README.md#x) ![b](../results/sample/bench/bench.png)"
    turned = GENERATED.with_outer_links(links, "p.md")
    assert turned == f"[a]({GENERATED.REPOSITORY}README.md#x) ![b](results/sample/bench/bench.png)"
    assert not caplog.records
    GENERATED.with_outer_links("[a](../nonesuch.md)", "p.md")
    assert "nonesuch.md" in caplog.text


def test_the_api_page_has_the_docstring_of_every_public_name():
    """Exceptions apart, which a table describes."""
    page = (DOCS / "api.md").read_text()
    described = set(re.findall(r"^::: adadelta_cli\.([\w.]+)$", page, re.MULTILINE))
    errors = {name for name in adadelta_cli.__all__ if name.endswith("Error")}
    assert described == {*adadelta_cli.__all__, "torch.Adadelta"} - errors


def labels(path):
    """List the texts of a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


@pytest.mark.slow
def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    """Their texts, numbers included; lines differ between versions of Matplotlib."""
    pictures = loaded("pictures")
    pictures.draw(tmp_path)
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} == set(pictures.PICTURES)
    for path in tmp_path.iterdir():
        assert labels(path) == labels(DOCS / "pictures" / path.name), f"{path.name}: make pictures"


def test_every_picture_has_a_description():
    """Somebody who does not see it is read what it shows."""
    for page in DOCS.glob("*.md"):
        for text in re.findall(r"!\[([^\]]*)\]", page.read_text()):
            assert len(text) > 40, f"{page.name}: {text!r}"


def build(root, folder):
    """Build the site of a repository as `make docs` does."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="MkDocs is not installed: make docs")
    (command,) = re.findall(r"\$\(BIN\)/(mkdocs build .*)", (ROOT / "Makefile").read_text())
    args = [sys.executable, "-m", *command.split(), "--site-dir", str(folder)]
    return subprocess.run(args, cwd=root, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_broken_links_fail(tmp_path):
    """To a page, to a section, and of a page that the navigation lacks."""
    for path in ROOT.iterdir():
        if path.name not in {".git", "docs", "site"}:
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(DOCS, tmp_path / "docs")
    links = "[a](nonesuch.md) [b](bits.md#none) [c](../nonesuch.txt)"
    (tmp_path / "docs" / "limits.md").write_text(links)
    (tmp_path / "docs" / "lost.md").write_text("A page.")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    found = [
        name for name in ("nonesuch.md", "nonesuch.txt", "#none", "lost.md") if name in done.stderr
    ]
    assert len(found) == 4, done.stderr


@pytest.mark.slow
def test_the_site_names_no_other_host(site):
    """No script, style, font or picture comes from elsewhere."""
    pages = [*site.rglob("*.html")]
    assert {"index.html", "commands.html", "bits.html", "api.html"} <= {page.name for page in pages}
    for page in pages:
        found = [tag for tag in OUTSIDE.findall(page.read_text()) if 'rel="canonical"' not in tag]
        found = [
            tag for tag in found if not re.search(r"<link[^>]*rel=[\"']?(canonical|next|prev)", tag)
        ]
        assert not found, page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_the_built_pages_have_options_keys_and_docstrings(site):
    """What is generated arrives in the site, and nothing of it is read as Markdown."""
    texts = {
        name: " ".join(html.unescape(re.sub(r"<[^>]+>", "", (site / name).read_text())).split())
        for name in ("commands.html", "config-keys.html", "api.html", "numpy.html")
    }
    for name, command in adadelta.commands.items():
        assert f"adadelta {name}" in texts["commands.html"]
        for parameter in command.params:
            assert (
                " ".join((getattr(parameter, "help", None) or "").split()) in texts["commands.html"]
            )
    assert all(plain(each.meaning) in texts["config-keys.html"] for each in keys.all_keys())
    assert "One AdaDelta step on all tensors of a model" in texts["api.html"]
    assert "def train(steps=300)" in texts["numpy.html"]
    assert "generated:" not in texts["commands.html"] + texts["config-keys.html"]


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a network to speak of."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright: make test-browser")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_pages_open_from_disk_without_complaint_or_request(site, browser, width, scheme):
    """In the browser: an empty console, files only, nothing wider than the screen; search finds."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    for path in set(site.glob("*.html")) - {site / "404.html"}:  # a web server shows that one
        page.goto(path.as_uri())
        wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, path.name
    page.goto((site / "index.html").as_uri() + "?q=subnormal")
    page.wait_for_selector(".md-search-result__item", state="attached")
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()
