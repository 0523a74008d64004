"""What a step is timed on."""

import pytest

from adadelta_cli.bench import workloads
from adadelta_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("1e6,1e7", [10**6, 10**7]),
        ("100k, 2.5M,1G", [10**5, 2_500_000, 10**9]),
        ("1", [1]),
        ("12345", [12345]),
        ("1e+3", [1000]),
        (".5k", [500]),
    ],
)
def test_sizes(text, elements):
    """A size is a number, with a suffix or in scientific notation; a list has commas."""
    assert [workload.elements for workload in workloads.sizes(text)] == elements


WRONG = ["0", "-5", "1.5", "1e-3", "five", "1e6;1e7", "1e6,", "1K", "nan", "1e99999"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_size(text):
    """Anything but whole numbers from 1 is rejected; the error names the entry and the rule."""
    with pytest.raises(UsageError, match=r"--sizes has '.*'.*allowed is .*--sizes 1e5,1e6,1e7"):
        workloads.sizes(text)


@pytest.mark.parametrize(
    ("size", "name"),
    [(10**6, "1e6"), (25 * 10**6, "2.5e7"), (12345, "12345"), (100, "100"), (1, "1")],
)
def test_the_name_of_a_size_is_short_and_exact(size, name):
    """A workload's name can be given back to --sizes."""
    (workload,) = workloads.sizes(str(size))
    assert workload.name == name
    assert workloads.sizes(name) == [workload]


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("mlp", 6, 545_810),
        ("resnet50", 161, 25_557_032),  # torchvision's documentation of resnet50
        ("bert-base", 199, 109_482_240),  # bert-base-uncased as transformers' BertModel counts it
        ("gpt2-small", 148, 124_439_808),  # the 124M model, output layer tied to the embedding
    ],
)
def test_the_networks_have_the_published_numbers_of_parameters(name, tensors, elements):
    """Tensors and elements are those that the networks' publishers count."""
    workload = workloads.model(name)
    assert (workload.tensors, workload.elements) == (tensors, elements)


def test_many_small_tensors():
    """The case of many small tensors has a thousand, of 10 to 1000 elements, the same each time."""
    sizes = [shape[0] for shape in workloads.model("many-small").shapes]
    assert (len(sizes), min(sizes), max(sizes)) == (1000, 10, 1000)
    assert workloads.model("many-small") == workloads.model("many-small")


def test_an_unknown_network():
    """A network that is not known is refused, with those that are."""
    with pytest.raises(UsageError, match=r"--model is 'alexnet'; known are mlp, resnet50"):
        workloads.model("alexnet")
