"""The problems' losses, gradients, data and optima are correct."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pytest
from conftest import needs_mxnet

from adadelta_cli.errors import UsageError
from adadelta_cli.implementations import optimizers
from adadelta_cli.implementations.array_backends import backend
from adadelta_cli.run import config
from adadelta_cli.run.problems import PROBLEMS, problem
from adadelta_cli.run.problems.problem import gradient

CASES = {
    "rosenbrock": {"name": "rosenbrock"},
    "rosenbrock in 7 dimensions": {"name": "rosenbrock", "dimension": 7},
    "logistic_regression": {"name": "logistic_regression", "l2": 0.03},
    "mlp relu": {"name": "mlp", "hidden": [9, 7]},
    "mlp tanh": {"name": "mlp", "hidden": [9, 7], "activation": "tanh"},
    "mlp sigmoid": {"name": "mlp", "hidden": [9, 7], "activation": "sigmoid"},
    "mlp with one hidden layer": {"name": "mlp", "hidden": [5]},
}


def build(seed=0, **settings):
    """Make a problem from the settings of a config."""
    whole = {"problem": settings, "training": {"steps": 1}}
    return problem(config.Config.model_validate(whole).problem, seed)


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """Each problem in several shapes, a point near its start, and a batch of 13 samples."""
    built = build(**request.param)
    rng = np.random.default_rng(1)
    point = [start + 0.3 * rng.standard_normal(start.shape) for start in built.start.values()]
    return built, point, [values[5:18] for values in built.data]


def gradients(built, library, point, batch, dtype):
    """Compute a gradient as a run does, on a backend."""
    tensors = [optimizers.tensor(library, w, "sgd", dtype) for w in point]
    compute = "float32" if dtype == "float16" else dtype
    gradient(built, library, tensors)([library.array(b.astype(compute)) for b in batch])
    return [library.numpy(t.grad) for t in tensors]


@needs_mxnet
def test_the_analytic_gradient_is_that_of_autograd(case):
    """NumPy's formulas and MXNet's differentiation of the loss agree to 1e-12 in double."""
    built, point, batch = case
    analytic, automatic = (
        gradients(built, backend(name), point, batch, "float64") for name in ("numpy", "mxnet")
    )
    for ours, theirs in zip(analytic, automatic, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13 * np.abs(theirs).max())


@needs_mxnet
def test_the_gradients_agree_at_the_start_too():
    """At zero weights every margin is 0, and biases are 0: no kink of a loss may lie there."""
    for settings in CASES.values():
        built = build(**settings)
        point = list(built.start.values())
        analytic, automatic = (
            gradients(built, backend(name), point, built.data, "float64")
            for name in ("numpy", "mxnet")
        )
        for ours, theirs in zip(analytic, automatic, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)


@needs_mxnet
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_gradients_agree_where_every_hidden_unit_is_at_zero(activation):
    """At relu's kink both take the slope 0; MXNet's own maximum(x, 0) has 1 there."""
    built = build(name="mlp", hidden=[9, 7], activation=activation)
    point = list(built.start.values())
    point[0] = np.zeros_like(point[0])
    analytic, automatic = (
        gradients(built, backend(name), point, built.data, "float64") for name in ("numpy", "mxnet")
    )
    for ours, theirs in zip(analytic, automatic, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)


def test_the_analytic_gradient_is_the_slope_of_the_loss(case):
    """Central differences of the loss along random directions give the gradient's projection."""
    built, point, batch = case
    grads = built.gradient(np, point, *batch)
    rng = np.random.default_rng(2)
    for _ in range(5):
        ways = [rng.standard_normal(w.shape) for w in point]
        ahead, behind = (
            built.loss(np, [w + h * d for w, d in zip(point, ways, strict=True)], *batch)
            for h in (1e-6, -1e-6)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(grads, ways, strict=True))
        assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_a_float16_gradient_is_the_float32_one_at_the_rounded_weights(case, backend):
    """The loss is computed in float32; only weights and gradients are rounded."""
    built, point, batch = case
    rounded = [w.astype(np.float16).astype(np.float64) for w in point]
    half = gradients(built, backend, point, batch, "float16")
    single = gradients(built, backend, rounded, batch, "float32")
    for ours, theirs in zip(half, single, strict=True):
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(ours, theirs.astype(np.float16))


@needs_mxnet
def test_the_loss_is_the_same_on_both_libraries(case):
    """The loss stands once, and means the same on NumPy and on MXNet."""
    built, point, batch = case
    library = backend("mxnet")
    there = built.loss(library.xp, [library.array(w) for w in point], *map(library.array, batch))
    assert float(there) == pytest.approx(float(built.loss(np, point, *batch)), rel=1e-13)


def test_rosenbrock_starts_and_ends_where_the_literature_says():
    """It starts at (-1.2, 1, -1.2, ...), in two dimensions with loss 24.2; 0 is reached at ones."""
    built = build(name="rosenbrock")
    assert built.loss(np, list(built.start.values())) == pytest.approx(24.2)
    assert built.measure(list(built.start.values())) == {"distance": pytest.approx(2.2)}
    wide = build(name="rosenbrock", dimension=5)
    assert wide.start["x"].tolist() == [-1.2, 1, -1.2, 1, -1.2]
    assert wide.loss(np, [np.ones(5)]) == 0
    assert wide.measure([np.ones(5)]) == {"distance": 0}


@pytest.mark.parametrize("l2", [1e-4, 1e-3, 1.0])
def test_the_optimum_of_logistic_regression_is_one(l2):
    """At scikit-learn's solution our gradient vanishes, and so does the gap."""
    built = build(name="logistic_regression", l2=l2)
    solved = built.solve()
    assert max(np.abs(g).max() for g in built.gradient(np, solved, *built.data)) < 1e-9
    assert built.measure(solved)["gap"] == pytest.approx(0, abs=1e-15)
    moved = [w + 1e-3 for w in solved]
    assert built.measure(moved)["gap"] > 1e-9


def test_an_optimum_that_cannot_be_found_is_refused():
    """Next to no l2 on classes that can be separated: a message, not a wrong reference."""
    with pytest.raises(UsageError, match=r"problem\.l2 is 1e-30, for which .*try"):
        build(name="logistic_regression", l2=1e-30)


def test_a_logistic_loss_is_right_at_any_margin():
    """log(1 + exp(-m)) neither overflows nor loses digits, from -1000 to 1000."""
    built = build(name="logistic_regression")
    built.l2 = 0
    margins = np.array([-1000.0, -30.5, -29.5, -1, 0, 1, 20, 1000])
    for margin in margins:
        weights = [np.array([margin]), np.zeros(1)]
        loss = built.loss(np, weights, np.ones((1, 1)), np.ones(1))
        assert loss == pytest.approx(np.logaddexp(0, -margin), rel=1e-12)


def test_accuracy_counts_what_is_classified_rightly():
    """At the optimum nearly all are right; with all signs turned, the others are."""
    built = build(name="logistic_regression")
    solved = built.solve()
    accuracy = built.measure(solved)["accuracy"]
    assert accuracy == pytest.approx(0.9877, abs=1e-4)
    assert built.measure([-w for w in solved])["accuracy"] == pytest.approx(1 - accuracy)


def test_the_breast_cancer_data_are_standardised():
    """569 samples of 30 features, each with mean 0 and deviation 1; 357 are benign."""
    features, labels = build(name="logistic_regression").data
    assert features.shape == (569, 30)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-12)
    assert (labels == 1).sum() == 357
    assert (labels == -1).sum() == 212


def test_held_out_digits_are_not_trained_on():
    """The split covers all 1797 digits once, and is another with another seed."""
    built, other = build(name="mlp"), build(name="mlp", seed=1)
    assert len(built.data[0]) + len(built.held_out[0]) == 1797
    assert len(built.held_out[0]) == 359
    kept, held_out = ({tuple(row) for row in rows} for rows in (built.data[0], built.held_out[0]))
    assert not kept & held_out
    assert not np.array_equal(built.data[0], other.data[0])


def test_the_mlp_has_the_sizes_of_its_config():
    """Two hidden layers of the given widths lie between 64 pixels and ten classes."""
    start = build(name="mlp", hidden=[20, 30]).start
    shapes = {name: values.shape for name, values in start.items()}
    assert shapes == {
        "weight1": (64, 20),
        "bias1": (20,),
        "weight2": (20, 30),
        "bias2": (30,),
        "weight3": (30, 10),
        "bias3": (10,),
    }


@pytest.mark.parametrize("each", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_measures_what_it_says(each):
    """The metrics of a problem are the loss and what `measure` returns, in that order."""
    built = build(name=each.name)
    assert ["loss", *built.measure(list(built.start.values()))] == list(built.metrics)


# --- the user's CSV file --------------------------------------------------------------------------


def from_csv(tmp_path, text, label="label"):
    """Build logistic regression on a CSV file with this text."""
    path = tmp_path / "my.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return build(name="logistic_regression", csv=str(path), label=label)


def test_a_csv_file_gives_features_and_classes(tmp_path):
    """All columns but the label are features; the second class in order is the positive one."""
    built = from_csv(tmp_path, "a, kind, b\n1, yes, 3\n2, no, 3\n6, yes, 3\n", label="kind")
    features, labels = built.data
    np.testing.assert_allclose(features[:, 0], (np.array([1, 2, 6]) - 3) / np.std([1, 2, 6]))
    assert features[:, 1].tolist() == [0, 0, 0]  # a constant column tells nothing
    assert labels.tolist() == [1, -1, 1]


def test_columns_of_any_magnitude_are_standardised(tmp_path):
    """As their multiples are: none is zeroed, and none overflows."""
    cells = [3, -1, 4, 1, -5, 9]
    expected = (np.array(cells) - np.mean(cells)) / np.std(cells)
    for exponent in (-320, -200, -5, 0, 100, 160, 200, 307):
        rows = [f"{cell}e{exponent},{k % 2}\n" for k, cell in enumerate(cells)]
        found = from_csv(tmp_path, "a,label\n" + "".join(rows)).data[0][:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-3 if exponent == -320 else 1e-12)


@pytest.mark.parametrize("rows", [3, 40, 1000])
@pytest.mark.parametrize(
    "cell", ["14.62", "0.1", "-1e-9", "100", "0", "1e308", "-1.7976931348623157e308", "5e-324"]
)
def test_a_constant_column_becomes_zero(tmp_path, cell, rows):
    """Whatever its value: the rounding of its mean is no deviation."""
    text = "c,label\n" + "".join(f"{cell},{k % 2}\n" for k in range(rows))
    assert not from_csv(tmp_path, text).data[0].any()


def test_a_column_that_hardly_varies_is_standardised(tmp_path):
    """By one unit in the last place, which a rounded mean would hide."""
    text = "a,label\n" + "".join(
        f"{[14.62, 14.620000000000001][k % 2]!r},{k % 2}\n" for k in range(99)
    )
    found = from_csv(tmp_path, text).data[0]
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert found.std() == pytest.approx(1)


HALF = "1,0\n2,1\n"  # enough rows for two classes
CLASSES = {
    "names that pandas takes for missing": ("a,label\n1,None\n2,NA\n3,None\n", [1, -1, 1]),
    "null and nan": ("a,label\n1,null\n2,nan\n", [1, -1]),
    "N/A and -": ("a,label\n1,N/A\n2,-\n", [1, -1]),
    "a number and a text": ("a,label\n1,x\n2,1\n", [1, -1]),
    "numbers in their order": ("a,label\n1,10\n2,9\n", [1, -1]),
    "one number, written in two ways": ("a,label\n1,1\n2,1.0\n3,0\n", [1, 1, -1]),
    "integers beyond float64": (f"a,label\n1,{2**53}\n2,{2**53 + 1}\n", [-1, 1]),
    "exponents beyond Decimal": ("a,label\n1,1e9999999999999999999\n2,2\n", [-1, 1]),
    "booleans": ("a,label\n1,True\n2,False\n", [1, -1]),
    "a byte order mark": ("\ufeffa,label\n" + HALF, [-1, 1]),
    "blank lines and spaces": ("\n  \na , label\r\n\r\n 1 , 0 \n\n2,1\n\n", [-1, 1]),
    "old Mac lines": ("a,label\r1,0\r2,1\r", [-1, 1]),
    "quotes": ('"a","label"\n1,"x ""y"", z"\n"2",w\n', [1, -1]),
    "no break at the end": ("a,label\n1,0\n2,1", [-1, 1]),
}


@pytest.mark.parametrize(("text", "labels"), CLASSES.values(), ids=CLASSES)
def test_classes_are_what_the_file_says(tmp_path, text, labels):
    """No text is missing, and the second class in order is the positive one."""
    assert from_csv(tmp_path, text).data[1].tolist() == labels


def test_a_class_may_change_its_kind_late_in_the_file(tmp_path):
    """A number in most of the rows, and a text in the last."""
    text = "a,label\n" + "1,0\n" * 200_000 + "2,disease\n"
    assert (from_csv(tmp_path, text).data[1] == 1).sum() == 1


WRONG = {
    "text": ("a,label\n1,0\nx,1\n", r"my\.csv, line 3: a is 'x'; features must be finite numbers"),
    "NaN": ("a,label\n1,0\nnan,1\n", r"line 3: a is 'nan'"),
    "no cell": ("a,label\n1,0\n,1\n", r"line 3: a is empty"),
    "infinite": ("a,label\ninf,0\n1,1\n", r"line 2: a is 'inf'"),
    "huge": ("a,label\n1e309,0\n1,1\n", r"line 2: a is '1e309'; .* at most 1\.798e\+308"),
    "400 digits": (f"a,label\n{'9' * 400},0\n1,1\n", r"line 2: a is '9+\.\.\."),
    "a number of Python's": ("a,label\n1_000,0\n1,1\n", r"line 2: a is '1_000'"),
    "digits of another script": ("a,label\n\u0661,0\n1,1\n", r"line 2: a is"),
    "a boolean": ("a,label\nTrue,0\n1,1\n", r"line 2: a is 'True'"),
    "no label": (
        "a,b\n1,0\n2,1\n",
        r"no column is named 'label'; problem\.label must be one of a, b",
    ),
    "semicolons": ("a;label\n1;0\n2;1\n", r"must be one of a;label \(commas separate"),
    "empty label": ("a,label\n1,0\n2,\n3,1\n", r"line 3: label is empty"),
    "one class": ("a,label\n1,0\n2,0\n", r"label holds 1 classes \(0\); .* needs 2"),
    "three classes": ("a,label\n1,0\n2,1\n3,2\n", r"holds 3 classes \(0, 1, 2\)"),
    "no rows": ("a,label\n", r"holds 0 classes"),
    "no features": ("label\n1\n0\n", r"no column besides the label"),
    "empty": ("", r"my\.csv is empty; it must be a CSV file with a header"),
    "blank": ("\n \n", r"my\.csv is empty"),
    "no UTF-8": (b"a,label\n\xff,1\n", r"line 2: byte 0xff is not UTF-8"),
    "no UTF-8, old Mac lines": (b"a,label\r1,0\r\xff,1\r", r"line 3: byte 0xff is not UTF-8"),
    "UTF-16": ("a,label\n1,0\n".encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
    "one field more": ("a,label\n1,5,0\n2,6,1\n", r"line 2: 3 fields, but the header has 2: a"),
    "one field more, late": ("a,label\n" + HALF + "1,2,3,4\n", r"line 4: 4 fields, .* has 2"),
    "commas at the ends": ("a,label\n1,0,\n2,1,\n", r"line 2: 3 fields, but the header has 2"),
    "a field missing": ("a,b,label\n1,2,0\n1,1\n", r"line 3: 2 fields, but the header has 3"),
    "two labels": ("label,a,label\n0,1,0\n", r"line 1: two columns are named 'label'"),
    "two columns of a name": ("a, a,label\n1,1,0\n", r"line 1: two columns are named 'a'"),
    "no name": (",a,label\n0,1,0\n1,2,1\n", r"line 1: column 1 has no name; name each"),
    "NUL": ("a,label\n0\x00.5,0\n1,1\n", r"line 2.*NUL"),
    "NUL in a class": ("a,label\n0,0\n1,1\x00\n", r"line 3.*NUL"),
    "NUL in the header": ("a\x00,label\n0,0\n1,1\n", r"line 1.*NUL"),
    "line after blank ones": ("\na,label\n\n\n1,0\n\nbad,1\n", r"line 7: a is 'bad'"),
    "line after breaks in quotes": ('a,label\n1,"0\n\n"\nbad,1\n', r"line 5: a is 'bad'"),
    "line of a row over several": ('a,label\n1,0\nbad,"1\n\n"\n', r"line 3: a is 'bad'"),
    "line with old Mac breaks": ("a,label\r\r1,0\rbad,1\r", r"line 4: a is 'bad'"),
    "an open quote": ('a,label\n1,"0\n2,1\n', r"line 2: a quote is not closed"),
    "more after a quote": ('a,label\n1,"0"x\n2,1\n', r"line 2: ',' expected after"),
    "an endless field": (f"a,label\n1,{'x' * 200_000}\n", r"line 2: field larger than"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_csv_file_that_is_no_data_is_refused(tmp_path, text, message):
    """The message names the file, the line where there is one, and what is wanted."""
    with pytest.raises(UsageError, match=message):
        from_csv(tmp_path, text)


def zipped(content):
    """Make a zip archive of two files."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.csv", content)
        archive.writestr("__MACOSX/._a.csv", "x")
    return whole.getvalue()


PLAIN = b"a,label\n1,0\n2,1\n"
COMPRESSED = {
    "gzip": gzip.compress(PLAIN),
    "truncated": gzip.compress(PLAIN)[:20],
    "xz": lzma.compress(PLAIN),
    "bzip2": bz2.compress(PLAIN),
    "zip": zipped(PLAIN),
}


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zip"])
def test_a_compressed_file_is_refused_whatever_its_name(tmp_path, name, kind):
    """The content decides, and the message says what it is."""
    (tmp_path / name).write_bytes(COMPRESSED[kind])
    word = "gzip" if kind == "truncated" else kind
    with pytest.raises(UsageError, match=rf"cannot be read: it is .*{word}.*; extract"):
        build(name="logistic_regression", csv=str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.csv.xz", "a.gz", "a.zip", "a.bz2", "a.tar", "BZh.zst"])
def test_a_text_is_read_whatever_its_name(tmp_path, name):
    """The name of a file is no hint at its content."""
    (tmp_path / name).write_bytes(PLAIN.replace(b"a", b"BZh", 1))
    built = build(name="logistic_regression", csv=str(tmp_path / name))
    assert built.data[1].tolist() == [-1, 1]


def test_a_missing_csv_file_is_refused(tmp_path):
    """The message names the key and the path."""
    with pytest.raises(UsageError, match=r"problem\.csv is .*gone\.csv, which cannot be read"):
        build(name="logistic_regression", csv=str(tmp_path / "gone.csv"))
