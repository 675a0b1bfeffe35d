"""The layout of the treemap of a report."""

from hypothesis import given
from hypothesis import strategies as st

from model_catalog.cli.commands.report.treemap import Rectangle, divide

SIZES = st.lists(st.integers(1, 10**15), min_size=1, max_size=60).map(
    lambda sizes: sorted(sizes, reverse=True)
)


@given(SIZES)
def test_areas_are_proportional_to_sizes(sizes):
    """
    Each rectangle lies in the area, and has the share of it that its size has of the sum.
    """
    area = Rectangle(0, 0, 1100, 520)

    found = divide(area, sizes)

    assert len(found) == len(sizes)
    for size, box in zip(sizes, found, strict=True):
        share = size / sum(sizes) * area.width * area.height
        assert abs(box.width * box.height - share) <= 1e-6 * area.width * area.height
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= area.width + 1e-6
        assert box.y + box.height <= area.height + 1e-6


def test_equal_sizes_are_nearly_square():
    """
    Four equal sizes in a square are four squares.
    """
    found = divide(Rectangle(0, 0, 100, 100), [1, 1, 1, 1])

    assert {(box.width, box.height) for box in found} == {(50, 50)}
