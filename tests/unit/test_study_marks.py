"""Which values the axis of a figure holds."""

from __future__ import annotations

from distft.report.study_marks import in_view


def test_one_diverged_value_does_not_press_the_others_flat() -> None:
    close = [0.68, 0.69, 0.7, 0.71, 0.72, 0.74]
    low, high = in_view([*close, 40.0], lower_wins=True)
    assert low < 0.68
    assert 0.74 < high < 1
    low, high = in_view([*close, -40.0], lower_wins=False)
    assert 0 < low < 0.68
    assert in_view([0.5], lower_wins=True)[0] < 0.5
