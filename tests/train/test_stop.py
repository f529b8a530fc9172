"""When a run has had enough."""

from hiermusic.train.stop import StopRule


def test_held_out_music_that_is_told_worse_than_at_the_beginning_ends_a_run():
    rule = StopRule(worse=2)
    for step, loss, ends in [(0, 2.0, 0), (10, 1.5, 0), (20, 2.1, 0), (30, 2.0, 0), (40, 2.2, 0), (50, 2.1, 1)]:
        rule.heard(step, loss)
        assert bool(rule.reason(step)) == bool(ends)
    assert rule.reason(50) == "the held-out loss has been above the 2 of step 0 for 2 validations"
    assert not StopRule(begun=1.0, above=9).reason(50)


def test_three_small_losses_in_a_row_end_a_run_whether_the_last_is_known_or_not():
    rule = StopRule(below=0.1)
    for step, loss in enumerate([0.05, 0.05, 0.2, 0.05, 0.05], 1):
        rule.saw(step, loss)
        assert not rule.reason(step) and not rule.reason(step + 1)
    rule.saw(6, 0.05)
    assert not rule.reason(6) and "below train.stop_loss=0.1 for 3 steps" in rule.reason(7)
    rule.saw(7, 5.0)
    assert rule.reason(7)


def test_a_rule_goes_on_from_what_it_has_seen():
    rule, other = StopRule(worse=2, below=0.1), StopRule(worse=2, below=0.1)
    rule.heard(0, 1.0)
    rule.heard(1, 2.0)
    for step in (1, 2, 3):
        rule.saw(step, 0.0)
    other.load(rule.dump())
    assert other == rule and other.reason(4)
