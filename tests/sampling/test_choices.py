"""Choices are kept in order, told as they come, and read back from a manifest."""

from bif.sampling.choices import Choice, Choices


def made(tell=None) -> Choices:
    choices = Choices(tell)
    choices.choose("gamma", 123.456, "by the curvature")
    choices.warn("chains run off")
    choices.choose("draws", 1_000_000.0, "asked for")
    return choices


def test_a_line_has_name_value_and_reason():
    lines = ["gamma = 123.5: by the curvature", "warning: chains run off"]
    assert list(map(str, made())) == [*lines, "draws = 1000000: asked for"]


def test_each_choice_is_reported_as_it_comes():
    told: list[list[str]] = []
    assert [[line] for line in map(str, made(told.append))] == told


def test_what_is_chosen_anew_replaces_what_was_chosen():
    choices = made()
    choices.forget("gamma")
    choices.extend([Choice("gamma", "1", "anew")])
    assert [c.name for c in choices] == ["", "draws", "gamma"]


def test_under_a_heading_a_warning_stays_one():
    outer = Choices()
    outer.extend(made(), under="there")
    assert [str(c) for c in outer][1] == "warning: there: chains run off"
    assert [c.is_warning for c in outer] == [False, True, False]


def test_a_line_of_a_manifest_reads_back_to_itself():
    for choice in made():
        read = Choice.from_line(str(choice))
        assert str(read) == str(choice) and read.is_warning == choice.is_warning
