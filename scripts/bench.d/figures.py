#!/usr/bin/python3
"""figures.py: what the samples of `scripts/bench application` come to.

    figures.py latency SAMPLES MOVE       the figures of one move, from what `client.py send` printed
    figures.py throughput SAMPLES MOVE WINDOWS
                                          the same, from what `client.py count` printed; WINDOWS has a line `go MOMENT` or
                                          `stand MOMENT` for each time that godwit was let go or stopped in the rounds
    figures.py table LINES                tables for people of all moves; LINES has a line of JSON for each
    figures.py sum LINES                  the same as one line of JSON

MOVE has what `godwit --json migrate` printed, each line after the time that it came, in microseconds, and a tab.
"""

import json
import math
import statistics
import sys

SECOND = 1_000_000
# what counts as usual: so long before the move; commands a second vary much from one second to the next
USUAL = 4 * SECOND
USUAL_RATE = 20 * SECOND
# the load settles after the resume
SETTLE = SECOND // 2

LATENCY = {
    "usual_p99_ms": "usual p99",
    "rounds_p99_ms": "p99 in the rounds",
    "after_p99_ms": "p99 of the first second after",
    "after_ratio": "after / usual",
    "gap_ms": "longest gap",
    "downtime_ms": "downtime",
}
THROUGHPUT = {
    "before_per_s": "before, 1/s",
    "rounds_per_s": "in the rounds, 1/s",
    "rounds_ratio": "rounds / before",
    "pairs_ratios": "godwit goes / stands",
    "after_per_s": "after, 1/s",
    "rounds_s": "rounds, s",
    "downtime_ms": "downtime, ms",
}


def pairs_of(path):
    """Two numbers a line."""
    with open(path, encoding="ascii") as file:
        return [tuple(map(int, line.split())) for line in file if line.strip()]


class Move:
    """When the parts of a move were, microseconds."""

    def __init__(self, path):
        self.began = self.rounds = self.freeze = self.summary = None
        with open(path, encoding="utf-8") as file:
            for line in file:
                moment, text = line.split("\t", 1)
                moment, event = int(moment), json.loads(text)
                if event["message_type"] == "summary":
                    self.summary = event
                elif event["message_type"] == "phase" and event["event"] == "begin":
                    if event["phase"] == "pre-copy":
                        self.rounds = moment
                    elif event["phase"] == "freeze":
                        self.freeze = moment
                if self.began is None:
                    self.began = moment
        if None in (self.began, self.rounds, self.freeze, self.summary):
            sys.exit("the move did not say all of its phases")
        self.resume = self.freeze + self.summary["downtime_us"]

    def figures(self):
        """What godwit itself says."""
        return {
            "downtime_ms": round(self.summary["downtime_us"] / 1000, 1),
            "rounds": len(self.summary["rounds"]),
            "rounds_s": round((self.freeze - self.rounds) / SECOND, 2),
            "strategy": self.summary["strategy"],
            "tracker": self.summary["tracker"],
            "restore": (self.summary.get("memory") or {}).get("restoration", "eager"),
        }


def p99(waits):
    """The least that 99 of 100 do not exceed, milliseconds."""
    if len(waits) < 100:
        sys.exit(f"{len(waits)} requests are too few for a p99")
    return sorted(waits)[math.ceil(len(waits) * 0.99) - 1] / 1000


def latency(samples, move):
    """How long requests took that were due before the move, in its rounds, and after the resume."""
    # the gap as the client has it: the longest time without an answer around the switchover
    answers = [answered for _, answered in samples if move.freeze - SECOND < answered < move.resume + 5 * SECOND]
    gap, resume = max((later - earlier, later) for earlier, later in zip(answers, answers[1:]))

    def due(begin, end):
        return [answered - due for due, answered in samples if begin <= due < end]

    usual = p99(due(move.began - USUAL, move.began))
    after = p99(due(resume, resume + SECOND))
    return {
        "usual_p99_ms": usual,
        # those that are due right before the freeze are answered after it: they are the gap's
        "rounds_p99_ms": p99(due(move.rounds, min(move.freeze, resume - gap))),
        "after_p99_ms": after,
        "after_ratio": round(after / usual, 1),
        "gap_ms": round(gap / 1000, 1),
    } | move.figures()


def rate_of(samples, begin, end):
    """Commands a second."""
    inside = [sample for sample in samples if begin <= sample[0] <= end]
    if len(inside) < 2 or inside[-1][0] - inside[0][0] < (end - begin) / 2:
        sys.exit("there are too few samples")
    (first, earlier), (last, later) = inside[0], inside[-1]
    return round((later - earlier) * SECOND / (last - first))


def pairs(samples, move, path):
    """For each window of the rounds in which godwit went between two in which it stood: its rate as a multiple of theirs."""
    with open(path, encoding="ascii") as file:
        marks = [(word, int(moment)) for word, moment in (line.split() for line in file)]
    windows = [(word, rate_of(samples, begin + SETTLE // 2, end)) for (word, begin), (_, end) in zip(marks, marks[1:])
               if end < move.freeze]
    return [went / statistics.mean((before, after)) for (first, before), (word, went), (_, after)
            in zip(windows, windows[1:], windows[2:]) if word == "go"]


def throughput(samples, move, windows):
    """How many commands a second there were before the move, in its rounds, and after it."""

    def rate(begin, end):
        return rate_of(samples, begin, end)

    before = rate(move.began - USUAL_RATE, move.began)
    rounds = rate(move.rounds, move.freeze)
    return {
        "before_per_s": before,
        "rounds_per_s": rounds,
        "rounds_ratio": round(rounds / before, 2),
        "pairs_ratios": [round(ratio, 3) for ratio in pairs(samples, move, windows)],
        "after_per_s": rate(move.resume + SETTLE, move.resume + SETTLE + 2 * SECOND),
    } | move.figures()


def groups_of(path):
    """The moves by what was measured, in the order they were."""
    groups = {}
    with open(path, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if not line.get("failed"):
                groups.setdefault((line["measure"], line.get("pace", "")), []).append(line)
    return groups


def spread(moves, figure):
    """Median, least and most; none where nothing was measured."""
    values = []
    for move in moves:
        # a list of many, or one
        measured = move.get(figure, [])
        values += measured if isinstance(measured, list) else [measured]
    return (statistics.median(values), min(values), max(values)) if values else None


def names_of(measure):
    """The figures of a measure."""
    return LATENCY if measure == "latency" else THROUGHPUT


def cell(figures):
    """Of a table."""
    if figures is None:
        return "–"
    return "{:g} ({:g} to {:g})".format(*(float(f"{value:.4g}") if value < 1000 else round(value) for value in figures))


def table(path):
    """For people: a table for each measure."""
    groups = groups_of(path)
    for measure, title in (("latency", "Latency, milliseconds"), ("throughput", "Throughput at saturation")):
        chosen = [(pace, moves) for (name, pace), moves in groups.items() if name == measure]
        if not chosen:
            continue
        names = names_of(measure)
        heads = [f"{f'`--pace {pace}`, ' if pace else ''}{len(moves)} move{'s' * (len(moves) > 1)}" for pace, moves in chosen]
        print(f"## {title}\n")
        print("| |" + "".join(f" {head} |" for head in heads))
        print("|---|" + "---:|" * len(chosen))
        for figure, words in names.items():
            print(f"| {words} |" + "".join(f" {cell(spread(moves, figure))} |" for _, moves in chosen))
        print()


def total(path):
    """For programs: one line."""
    result = {"message_type": "summary"}
    for (measure, pace), moves in groups_of(path).items():
        result.setdefault(measure, []).append({"pace": pace or None, "moves": len(moves)} | {
            figure: dict(zip(("median", "least", "most"), spread(moves, figure) or ())) for figure in names_of(measure)})
    print(json.dumps(result))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["latency", samples, move]:
            print(json.dumps(latency(pairs_of(samples), Move(move))))
        case ["throughput", samples, move, windows]:
            print(json.dumps(throughput(pairs_of(samples), Move(move), windows)))
        case ["table", lines]:
            table(lines)
        case ["sum", lines]:
            total(lines)
        case _:
            sys.exit(__doc__)
