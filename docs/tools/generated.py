"""What MkDocs makes of the program itself: the command reference and the keys of a config.

MkDocs calls the functions that begin with `on_` (`hooks:` in mkdocs.yml). The pages are committed
with a marker each, which the text replaces, so that a reader of the repository finds them, too.
"""

from __future__ import annotations

import html
import inspect
import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadelta_cli.cli.main import adadelta
from adadelta_cli.guide import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.generated")
ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/adadelta-cli/adadelta/blob/main/"
SAMPLES = "results/sample"  # committed pictures of results, which pages show


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of the committed results to the site."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / SAMPLES).rglob("*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill in what is generated, and turn links out of docs/ to the repository."""
    for name, make in GENERATED.items():
        markdown = markdown.replace(f"<!-- generated: {name} -->", make())
    return with_outer_links(markdown, page.file.src_uri)


def with_outer_links(markdown: str, page: str) -> str:
    """Turn links to files beside docs/ to where they lead from the site.

    A file that does not exist is a warning, at which a strict build fails.
    """

    def turned(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), found[2]))
        if not (ROOT / path).exists():
            LOG.warning("Doc file %r contains a link to %r, which does not exist", page, path)
        return f"{found[1]}({path if found[1].startswith('!') else REPOSITORY + path}"

    return re.sub(r"(!?\[[^\]]*\])\((\.\./[^)#\s]+)", turned, markdown)


def commands() -> str:
    """Describe every command and option in the words of its `--help`."""
    top = click.Context(adadelta, info_name="adadelta", **adadelta.context_settings)
    inner = (
        click.Context(command, info_name=name, parent=top)
        for name, command in adadelta.commands.items()
    )
    return "\n\n".join(part for context in (top, *inner) for part in _command(context))


def _command(context: click.Context) -> Iterator[str]:
    command = context.command
    yield f"## `{context.command_path}`"
    yield _indented(" ".join([context.command_path, *command.collect_usage_pieces(context)]))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        is_example = paragraph.startswith("\b\n")  # lines that Click is not to join
        yield _indented(paragraph[2:]) if is_example else _escaped(paragraph)
    records = (each.get_help_record(context) for each in command.get_params(context))
    rows = [f"| {_code(option)} | {_escaped(text)} |" for option, text in filter(None, records)]
    yield "\n".join(["| option | meaning |", "|---|---|", *rows])


def config_keys() -> str:
    """Describe every key of every section of a config, as `adadelta explain` does."""
    sections = dict.fromkeys(each.key.partition(".")[0] for each in keys.all_keys())
    return "\n\n".join(part for section in sections for part in _section(section))


def _section(section: str) -> Iterator[str]:
    yield f"## `{section}`"
    found = keys.explain(section)
    names = {each.name for each in found} - {""}
    users: dict[tuple[str, ...], list[str]] = {}  # of what is the same for several of them
    for each in found:
        text = (each.key, each.default or "required", each.allowed, each.meaning)
        users.setdefault(text, []).append(each.name)
    titles = ("key", *(("of",) if names else ()), "default", "allowed", "meaning")
    rows = []
    for (key, default, *words), having in users.items():
        of = "all" if len(having) == len(names) else ", ".join(map(_code, having))
        cells = (_code(key), *((of,) if names else ()), _code(default), *map(_escaped, words))
        rows.append(cells)
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    """Show a text as it is, on one line, in Markdown and in a table."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


GENERATED = {"commands": commands, "keys": config_keys}
