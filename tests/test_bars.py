"""What long work says of itself where there is no terminal."""

from samlit.shell import bars


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    with bars.bar() as report:
        for done in range(1, 101):
            clock[0] += 1.0
            report(done, 100, "drawing")
            report(min(done, 3), 3, "counting")
        report(100, 100, "drawing")
    assert capsys.readouterr().err.splitlines() == [
        "samlit: counting 3/3",
        "samlit: drawing 31/100",
        "samlit: drawing 61/100",
        "samlit: drawing 91/100",
        "samlit: drawing 100/100",
    ]


def test_what_asks_for_colours_does_not_make_a_terminal(monkeypatch, capsys):
    """Jupyter's kernels set it, for programs that write into a notebook's cell, which cannot go up a line."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bars.bar() as report:
        for done in range(1, 4):
            report(done, 3, "drawing")
    assert capsys.readouterr().err == "samlit: drawing 3/3\n"
