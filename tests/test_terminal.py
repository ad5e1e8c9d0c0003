"""One look: what is said where, what `--quiet` leaves, and colours for terminals alone."""

import io
import sys

import pytest

from samlit.shell import bars, terminal


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def screens(monkeypatch):
    """Makes stdout and stderr a terminal that knows colours, when it is called: pytest puts its own before a test."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")

    def make():
        out, err = Screen(), Screen()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return make


def speak():
    terminal.say("saved to a")
    terminal.tell("step 1/2")
    terminal.note("no checkpoint yet")
    terminal.fail("the disk is full")
    terminal.fail("the disk is full", rank="3")
    table = terminal.table("fault", "records", "", left=[""])
    table.add_row("bytes", "12", "not an image [that can] be read")
    terminal.show("found", table)
    with bars.bar() as report:
        report(1, 1, "drawing")


TABLE = ["found", "fault  records", "bytes       12  not an image [that can] be read"]


def test_results_are_on_stdout_and_lines_about_them_on_stderr(capsys):
    speak()
    out, err = capsys.readouterr()
    assert out.splitlines() == ["saved to a", *TABLE]
    assert err.splitlines() == [
        "samlit: step 1/2",
        "samlit: note: no checkpoint yet",
        "samlit: the disk is full",
        "samlit: rank 3: the disk is full",
        "samlit: drawing 1/1",
    ]


def test_quiet_leaves_what_was_asked_for_and_what_went_wrong(capsys):
    with terminal.silenced():
        speak()
    out, err = capsys.readouterr()
    assert out.splitlines() == TABLE
    assert err.splitlines() == ["samlit: the disk is full", "samlit: rank 3: the disk is full"]
    terminal.say("aloud again")
    assert capsys.readouterr().out == "aloud again\n"


def test_a_terminal_gets_colours_and_bars(screens):
    made = screens()
    speak()
    out, err = (screen.getvalue() for screen in made)
    assert "\x1b[31msamlit:\x1b[0m the disk is full" in err
    assert "\x1b[33msamlit:\x1b[0m note: " in err
    assert "\x1b[2mfault" in out
    assert "━" in err
    assert "drawing 1/1" not in err


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_for_who_wants_none(name, value, screens, monkeypatch):
    monkeypatch.setenv(name, value)
    made = screens()
    terminal.fail("the disk is full")
    terminal.show(terminal.table("fault", "records"))
    out, err = (screen.getvalue() for screen in made)
    assert (out, err) == ("fault  records\n", "samlit: the disk is full\n")
    with bars.bar() as report:
        report(1, 1, "drawing")
    shown = made[1].getvalue().removeprefix(err)
    # What is drawn over needs the codes that move the cursor, and a dumb terminal knows none.
    assert (shown == "samlit: drawing 1/1\n") == (name == "TERM")
    assert "\x1b[3" not in shown


def test_a_pipe_gets_wide_tables_and_a_terminal_those_that_fit(screens, monkeypatch):
    table = terminal.table("name", "what it is", left=["what it is"])
    table.add_row("a", "word " * 30 + "end")
    monkeypatch.setenv("NO_COLOR", "1")
    screen, _ = screens()
    terminal.show(table)
    assert max(map(len, screen.getvalue().splitlines())) <= 60
    assert screen.getvalue().count("word") == 30
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    terminal.show(table)
    assert pipe.getvalue().splitlines()[1].endswith("word end")


NUMBERS = {None: "", float("nan"): "-", 0.12345: "0.123", 1.0: "1.000", 12.0: "12", 2.5: "2.500"}


@pytest.mark.parametrize(("value", "text"), NUMBERS.items())
def test_numbers_in_tables(value, text):
    assert terminal.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (61.4, "1:01"), (3725, "1:02:05")])
def test_time_left_reads_like_a_clock(seconds, text):
    assert bars.clock(seconds) == text
