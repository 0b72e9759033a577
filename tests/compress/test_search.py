"""What a search tries, what it takes, and what it says of a goal, by hand."""

import pytest

from lsp.compress.search import Goal, Shape, Tried, aimed, asked, best, front, misaimed, near, needed, promising, shapes


def tried(drop: float, speedup: float, size: int, run: str = "x", encoder: int = 0) -> Tried:
    return Tried(run, None, False, drop, speedup, size, encoder=encoder)


def test_a_goal_is_met_or_missed_by_so_much() -> None:
    goal = Goal(1.0, 4.0, 20e6)
    assert goal.missed(tried(1.0, 4.0, 20_000_000)) == 0
    assert goal.missed(tried(-0.5, 9.0, 1)) == 0
    assert abs(goal.missed(tried(3.0, 2.0, 30_000_000)) - (0.2 + 0.94 + 0.5)) < 1e-9
    assert goal.missed(tried(0.9, 3.9, 9)) == 0 < goal.missed(tried(0.9, 3.8, 9)), "a clock can't tell 3.9 from 4"
    assert Goal(1.0).missed(tried(0.9, 0.1, 10**12)) == 0
    assert goal.enough(tried(9.0, 3.9, 9)) and not goal.enough(tried(0.0, 3.8, 9))


def test_a_model_may_be_so_much_slower_or_its_encoder_so_much_larger() -> None:
    small = tried(0.0, 6.0, 15, encoder=5)
    assert Goal(1.0, 4.0).spare(small) == 1.5
    assert Goal(1.0, 4.0, 16).spare(small) == 1.2, "6 for 5"
    assert Goal(1.0, 12.0, 16).spare(small) == 0.5
    assert Goal(1.0, 0.0, 12).spare(small) == 0.4, "2 for 5"
    assert Goal(1.0, 4.0, 10).spare(small) == Goal(1.0, 4.0, 9).spare(small) == 0, "words alone have 10"


def test_the_front_holds_what_no_other_beats() -> None:
    good, fast, small = tried(0.0, 2.0, 9), tried(1.0, 5.0, 9), tried(1.0, 1.0, 3)
    beaten, equal = tried(1.0, 2.0, 9), tried(0.0, 2.0, 9, "y")
    assert front([beaten, small, fast, good]) == [good, fast, small]
    assert len(front([good, equal])) == 2, "neither of two equal ones beats the other"


def test_the_most_accurate_is_taken_where_speed_is_asked_for_and_else_the_fastest() -> None:
    slow, quick, wrong = tried(0.2, 4.5, 9), tried(0.9, 8.0, 9), tried(2.0, 20.0, 9)
    assert best([wrong, quick, slow], Goal(1.0, 4.0)) == slow
    assert best([wrong, quick, slow], Goal(1.0)) == quick
    assert best([wrong, quick, slow], Goal(0.1, 4.0)) == slow, "the closest, where none meets the goal"
    nearly = tried(0.1, 3.95, 9)
    assert best([nearly, slow], Goal(1.0, 4.0)) == slow, "what a clock calls fast enough comes after what is"


def test_structure_makes_up_for_what_int8_leaves() -> None:
    plain = tried(0.0, 2.0, 20, encoder=12)
    assert asked(Goal(1.0, 4.0, 8), plain) == (2.0, 2.5) and asked(Goal(1.0), plain) == (0.0, 0.0)
    assert needed(Goal(1.0, 4.0), plain)[0] == 2.1
    assert needed(Goal(1.0, 0.0, 10), plain)[0] == 2.1
    assert needed(Goal(1.0, 0.0, 7), plain)[0] == 3.0, "words alone have 8, and with fewer channels 6.7"
    assert needed(Goal(1.0, 0.0, 6.5), plain) == [], "no structure helps"
    assert needed(Goal(1.0, 1.5, 30), plain) == []
    assert needed(Goal(1.0, 4.0, 20), plain) == [2.1, 2.5, 3.0], "small enough"
    assert needed(Goal(1.0, 4.0, 15), plain)[-1] == 6.0, "structure leaves word tables as large as they were"
    assert needed(Goal(1.0, 2.05, 20), plain) == [], "a clock can't tell 2 from 2.05"
    assert needed(Goal(1.0), plain) == [1.5, 2.0, 3.0, 4.5, 7.0]


def test_what_is_too_slow_or_too_large_is_not_trained() -> None:
    rows = (3.67, 4.94, 7), (6.2, 4.2, 7), (1.0, 5.3, 9), (2.0, 8.2, 8)
    free = [tried(*row, encoder=5) for row in rows]
    assert [one.drop for one in promising(free, Goal(2.0, 5.0, 8))] == [2.0, 3.67], "4 for 5 is too far to aim again"
    assert [one.drop for one in promising(free, Goal(2.0, 5.0))] == [1.0, 2.0, 3.67]
    assert len(promising(free, Goal(2.0))) == 4


@pytest.mark.parametrize(
    ("drop", "speedup", "again"),
    [
        (2.5, 6.0, 2.58),  # a fifth faster than it has to be, and half a point too bad: 3 / 1.2, and 3 % for the clock
        (1.5, 4.0, 3.86),  # good enough, and too slow: 3 / 0.8
        (2.5, 5.4, None),  # a clock and the choice of a structure are no more exact: what is slower would be no better
        (2.5, 4.0, None),  # neither good nor fast
        (1.5, 5.0, None),  # meets the goal
        (2.5, 20.0, None),  # 3 / 4: no structure at all
    ],
)
def test_a_speed_that_was_missed_is_aimed_at_again(drop: float, speedup: float, again: float | None) -> None:
    found, goal = Tried("x", Shape(4, 3.0, "8+96", "12+96"), True, drop, speedup, 9), Goal(2.0, 5.0)
    assert (aimed(found, goal) if misaimed(found, goal) else None) == (again and Shape(4, again))
    assert aimed(found, Goal(2.0)) is None and aimed(tried(drop, speedup, 9), goal) is None


def test_structures_are_near_each_other_within_what_a_clock_can_tell() -> None:
    assert near(Shape(4, 2.05), Shape(4, 2.0, "8+96")) and not near(Shape(4, 2.1), Shape(4, 2.0))
    assert not near(Shape(4, 2.0, channels=320), Shape(4, 2.0)) and not near(Shape(3, 2.0), Shape(4, 2.0))


def test_a_size_that_was_missed_is_aimed_at_again() -> None:
    found, goal = Tried("x", Shape(4, 3.0), True, 1.5, 9.0, 100, encoder=50), Goal(2.0, 5.0, 98)
    assert misaimed(found, goal) and aimed(found, goal) == Shape(4, 3.22), "48 for 50: 3 / 0.96, and 3 %"
    assert aimed(found, Goal(2.0, 5.0, 50)) is None, "where the words alone are too large, no structure helps"


def test_depths_go_from_all_layers_to_a_third() -> None:
    assert [shape.depth for shape in shapes(6, 16, 2.0)] == [6, 4, 3, 2]
    assert [shape.depth for shape in shapes(12, 16, 2.0)] == [12, 8, 6, 4]
    assert shapes(1, 16, 2.0) == [Shape(1, 2.0)], "16 channels are a vector as they are"
    assert shapes(2, 384, 2.0) == [Shape(2, 2.0, channels=320), Shape(2, 2.0), Shape(1, 2.0)]
    assert shapes(2, 100, 2.0)[0].channels == 80
