"""What long work says of itself where there is no terminal."""

from samlit import bars


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
        "counting 3/3",
        "drawing 31/100",
        "drawing 61/100",
        "drawing 91/100",
        "drawing 100/100",
    ]
