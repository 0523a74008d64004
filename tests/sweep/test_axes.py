"""What a sweep varies: lists, ranges, and the settings that are drawn of them."""

from __future__ import annotations

import pytest

from adadelta_cli.errors import UsageError
from adadelta_cli.run import yaml12
from adadelta_cli.sweep import axes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.rho=0.9,0.95", (0.9, 0.95)),
        ("optimizer.epsilon=1e-2,1e-4", (0.01, 0.0001)),
        ("problem.hidden=[16,8],[4]", ([16, 8], [4])),
        ("problem.activation=relu, tanh", ("relu", "tanh")),
        ("optimizer.clip_gradient=null,1", (None, 1)),
        (" optimizer.rho =0.5", (0.5,)),
    ],
)
def test_a_list_is_read_as_yaml(text, values):
    """Lists in brackets are values, numbers are those of YAML 1.2, one value is enough."""
    found = axes.parse_grid(text)
    assert found.values == values and not found.kind
    assert found.key == text.partition("=")[0].strip()


@pytest.mark.parametrize(
    ("text", "kind", "bounds"),
    [
        ("optimizer.epsilon=log:1e-8:1e-2", "log", (1e-8, 1e-2)),
        ("optimizer.rho=lin:0.5:0.99", "lin", (0.5, 0.99)),
        ("optimizer.rho=uniform:0.5:0.99", "lin", (0.5, 0.99)),
        ("problem.dimension=int:2:9", "int", (2, 9)),
    ],
)
def test_a_range_is_read(text, kind, bounds):
    """The word before the colon says how it is drawn from."""
    found = axes.parse_grid(text)
    assert (found.kind, found.bounds) == (kind, bounds)


@pytest.mark.parametrize(
    "text",
    [
        *("optimizer.rho", "=1", ".rho=1", "optimizer.=1", "a..b=1"),
        *("optimizer.rho=", "optimizer.rho=0.9,", "optimizer.rho=0.9,,1", "optimizer.rho=]"),
        *("optimizer.rho=1], [2", "optimizer.rho=0.9,0.9"),
        *("a.b=log:0:1", "a.b=log:-1:1", "a.b=log:2:1", "a.b=lin:1:1", "a.b=lin:a:b"),
        *("a.b=int:1.5:3", "a.b=int:1:x", "a.b=lin:.nan:1", "a.b=lin:0:.inf", "a.b=lin::1"),
        *("a.b=lin:true:2", "a.b=lin:0:1e400"),
    ],
)
def test_other_texts_are_wrong_usage(text):
    """The message names the option and what is expected."""
    with pytest.raises(UsageError, match=r"--grid .*(expected|twice|invalid YAML|anchor|alias)"):
        axes.parse_grid(text)


def test_a_wrong_bound_is_no_wrong_name():
    """The name is right: nothing is suggested."""
    with pytest.raises(UsageError, match=r"'log:0:1'; expected"):
        axes.parse_grid("a.b=log:0:1")


def test_a_range_of_all_magnitudes_is_drawn_from():
    """HIGH / LOW is more than the largest float."""
    found = axes.parse_grid("a.b=log:1e-200:1e200")
    assert [found.draw(each) for each in (0.0, 0.5, 0.75)] == [1e-200, 1.0, 1e100]


def test_a_range_with_too_few_values_is_exhausted_at_once():
    """The number of draws depends on what there is, not on what was asked for."""
    assert len(axes.drawn([axes.parse_grid("a.b=int:1:3")], 10**8, 0)) == 3
    assert len(axes.drawn([axes.parse_grid("a.b=int:1:300")], 300, 0)) == 300


def test_combinations_count_without_being_made():
    """A grid of a million million settings is counted at once."""
    many = [axes.Axis(f"a.{k}", "", values=tuple(range(100))) for k in range(6)]
    assert axes.count(many) == 100**6
    assert list(axes.combinations([axes.parse_grid("a=1,2"), axes.parse_grid("b=3,4")])) == [
        *((1, 3), (1, 4), (2, 3), (2, 4))
    ]


DRAWN = [axes.parse_grid(t) for t in ("o.e=log:1e-8:1e-2", "o.r=lin:0.5:0.99", "p.d=int:2:9")]


def test_the_draws_are_those_of_every_machine():
    """These were drawn once; a change would make results of earlier sweeps useless."""
    assert axes.drawn(DRAWN, 3, seed=7) == [
        *((2.1427e-06, 0.828129, 4), (0.000550468, 0.720013, 4), (2.95037e-06, 0.880794, 6))
    ]


def test_more_draws_begin_with_those_of_fewer():
    """A sweep that grows computes the new settings only."""
    assert axes.drawn(DRAWN, 40, 0)[:20] == axes.drawn(DRAWN, 20, 0)
    assert axes.drawn(DRAWN, 20, 0) != axes.drawn(DRAWN, 20, 1)


def test_another_key_changes_no_draw_of_this_one():
    """A draw depends on its own key only."""
    more = [*DRAWN, axes.parse_grid("p.x=lin:0:1")]
    assert [each[:3] for each in axes.drawn(more, 20, 0)] == axes.drawn(DRAWN, 20, 0)


def test_draws_cover_their_ranges():
    """The ends of a range of integers occur; logarithms are drawn evenly."""
    settings = axes.drawn(DRAWN, 2000, 0)
    epsilon, rho, dimension = zip(*settings, strict=True)
    assert set(dimension) == set(range(2, 10))
    assert 1e-8 <= min(epsilon) < 1.1e-8 and 0.9e-2 < max(epsilon) <= 1e-2
    assert sum(each < 1e-5 for each in epsilon) == pytest.approx(1000, abs=100)
    assert 0.5 <= min(rho) < 0.501 and 0.989 < max(rho) <= 0.99


def test_a_list_that_is_drawn_from_gives_distinct_settings():
    """As many as there are, each once; then it ends."""
    few = [axes.parse_grid("a=1,2"), axes.parse_grid("b=3,4")]
    assert sorted(axes.drawn(few, 3, 0)) != sorted(axes.drawn(few, 4, 0))
    assert sorted(axes.drawn(few, 4, 0)) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert len(axes.drawn(few, 9, 0)) == 4


@pytest.mark.parametrize(
    "value",
    [
        *(1, 1e-6, 0.1, "relu", "a b", "1", "1e-6", "true", "null", "", " x", "a: b", "x:", "-"),
        *([16, 8], ["a", None], True, None, "/a/b.csv", "caf\udce9", "# no", "[x]", "a,b", "é"),
    ],
)
def test_a_value_is_written_so_that_it_reads_back(value):
    """The commands that a sweep prints set exactly its values."""
    text = yaml12.flow(value)
    assert yaml12.parse(text, str)[0] == value
    assert yaml12.parse(f"[{text}, {text}]", str)[0] == [value, value]
