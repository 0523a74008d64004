"""`adadelta list`, `explain`, `init` and `completion`: learn the tool without leaving it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from adadelta_cli.cli.options import (
    SCREEN_OPTIONS,
    Choice,
    Command,
    completes,
    decorated,
    possible,
    terminal,
)
from adadelta_cli.errors import UsageError

PROBLEMS = ("rosenbrock", "logistic_regression", "mlp")  # of which a config is bundled
WHAT = ("cases", "implementations", "models", "problems", "optimizers", "configs")


class BundledProblem(Choice):
    """A problem of which a config is bundled."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the problem; one of the user's own has no config to begin with."""
        if value == "python":
            self.fail(
                "'python' is a problem of your own, for which no config is bundled; "
                f"docs/own-problems.md has one to copy; bundled: {', '.join(self.choices)}",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


@click.command("list", cls=Command)
@click.argument("what", type=Choice(WHAT))
@decorated(SCREEN_OPTIONS)
def list_names(what: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the names that options and configs take.

    Each has a line about it.

    \b
    adadelta list cases              for verify --case
    adadelta list implementations    for verify --impl and bench --impl
    adadelta list models             for bench --model
    adadelta list problems           for problem.name in a config
    adadelta list optimizers         for optimizer.name in a config
    adadelta list configs            for run
    """
    from adadelta_cli.guide import report
    from adadelta_cli.guide.listing import LISTS

    screen = terminal(as_json, quiet, verbose)
    entries = LISTS[what]()
    screen.table(report.list_table(what, entries))
    screen.document({what: [entry._asdict() for entry in entries]})


@click.command(cls=Command)
@click.argument("key", shell_complete=completes("keys"))
@decorated(SCREEN_OPTIONS)
def explain(key: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Explain a key of a config.

    Prints what it means, its default and its range. KEY is a key with or without its section, or a
    section.

    \b
    adadelta explain optimizer.rho
    adadelta explain lr
    adadelta explain training
    """
    from adadelta_cli.guide import keys, report

    screen = terminal(as_json, quiet, verbose)
    found = keys.explain(key)
    screen.table(report.keys_table(found))
    screen.document({"keys": [vars(each) for each in found]})


@click.command(cls=Command)
@click.argument("file", required=False, type=click.Path(path_type=Path), callback=possible)
@click.option(
    "--problem",
    default="mlp",
    show_default=True,
    type=BundledProblem(PROBLEMS),
    help="The problem to begin with.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@decorated(SCREEN_OPTIONS)
def init(
    file: Path | None, problem: str, force: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Write a config to start from, with every key explained.

    FILE is the config's name, by default my-PROBLEM.yaml.

    \b
    adadelta init
    adadelta init first.yaml --problem rosenbrock
    """
    from adadelta_cli import files
    from adadelta_cli.guide import starter

    screen = terminal(as_json, quiet, verbose)
    path = Path(f"my-{problem}.yaml") if file is None else file
    if not path.suffix:
        path = path.with_suffix(".yaml")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; name another file, or replace it with --force")
    files.prepare_folder(path.parent, option="FILE")
    files.write_bytes(path, files.to_utf8(starter.starter_config(problem)))
    screen.text(f"written: {path}; train it with: adadelta run {path}")
    screen.document({"written": str(path), "problem": problem})


@click.command(cls=Command)
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and names.

    \b
    bash: adadelta completion bash > ~/.adadelta.bash; in ~/.bashrc: . ~/.adadelta.bash
    zsh:  adadelta completion zsh > ~/.adadelta.zsh; in ~/.zshrc: . ~/.adadelta.zsh
    fish: adadelta completion fish > ~/.config/fish/completions/adadelta.fish
    """
    kind = get_completion_class(shell)
    group = context.find_root().command
    if kind is None:
        raise UsageError(f"Click has no completion for {shell}")
    made = kind(group, {}, "adadelta", "_ADADELTA_COMPLETE")
    click.echo(made.source_template % made.source_vars())


COMMANDS = (list_names, explain, init, completion)
