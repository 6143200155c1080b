"""An audit made by hand, whose numbers tests know."""

from __future__ import annotations

from collections.abc import Mapping

from fedunlearn.attacks import ATTACKS, Attack
from fedunlearn.auditing import Audit
from fedunlearn.audits.certainty import Interval
from fedunlearn.audits.membership import Compared, Result
from fedunlearn.audits.relearning import Relearned
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN, Examined, Facts, Probed, TurnedBack

HOSTILE = "<b>x</b>" + "_of_every_layer" * 6
STEPS = (0, 4, 8)


def result(sample: float, client: float, here: float, here_p: float, *rates: float) -> Result:
    """Intervals reach 3 points to either side, of a share of wins 20 down, of what is found 2."""
    found = {
        rate: Interval(share, share - 0.02, share + 0.02) for rate, share in zip((0.01, 0.001), rates, strict=False)
    }
    return Result(
        Interval(sample, sample - 0.03, sample + 0.03),
        Interval(client, client - 0.2, client),
        found,
        Interval(here, here - 0.1, here + 0.1),
        here_p,
    )


def compared(excess: float, sample_p: float, client_p: float) -> Compared:
    return Compared(Interval(excess, excess - 0.05, excess + 0.05), sample_p, client_p)


def attack(name: str, results: Mapping[str, Result], beside: Mapping[str, Compared]) -> Attack:
    kind = next(kind for kind in ATTACKS if kind.name == name)
    curves = dict.fromkeys(results, ((0.05, 0.0), (0.1, 0.25), (1.0, 1.0)))
    counts = (tuple([0] * 19 + [1, 3] + [0] * 19), tuple([0] * 19 + [3, 1] + [0] * 19))
    histograms = dict.fromkeys(results, counts) if "LiRA" in name else {}
    return Attack(name, kind.knowledge, kind.forget, kind.judged, kind.blind, results, beside, curves, histograms)


def curve(*losses: float) -> Relearned:
    return Relearned(STEPS, losses, (0.0, 0.5, 1.0))


def facts(
    own: float, forgotten: tuple[Relearned, ...], twins: tuple[Relearned, ...], back: TurnedBack | None = None
) -> Facts:
    """Of a model that is right about so many of its own, 10 points fewer of twins, 20 of the population."""
    return Facts(
        own,
        own - 0.1,
        own - 0.2,
        {"own": 1 - own, "population": 0.05},
        0.125,
        (Probed("conv<1>", 0.52, own, own - 0.1), Probed("head", 0.61, own - 0.3, own - 0.35)),
        forgotten,
        twins,
        back,
    )


SLOW, SOON, NEVER = curve(1, 0.5, 0.1), curve(1, 0.11, 0.05), curve(1, 0.9, 0.8)
KNOWN = curve(0.1, 0.1, 0.1)


def examined(seed: int, own: float, back: TurnedBack) -> Examined:
    return Examined(
        seed,
        {
            ORIGINAL: facts(own, (KNOWN, KNOWN), (SOON, SOON)),
            REFERENCE: facts(own - 0.1, (SLOW, SOON), (SLOW, SLOW)),
            "NoT": facts(own - 0.15, (SOON, SOON), (SLOW, SLOW), back),
            HOSTILE: facts(own - 0.05, (KNOWN, NEVER), (NEVER, NEVER)),
            AGAIN: facts(own - 0.12, (SLOW, SLOW), (SLOW, SLOW)),
        },
    )


AUDIT = Audit(
    title='<script>alert("title")</script> & more',
    run="a-run",
    seed=3,
    shadows=32,
    targets=32,
    stay=96,
    methods=(REFERENCE, "NoT", HOSTILE),
    lost={},
    attacks=(
        attack(
            "U-LiRA",
            {
                ORIGINAL: result(0.801, 0.95, 0.789, 0.0001, 0.301),
                REFERENCE: result(0.502, 0.54, 0.487, 0.62, 0.011),
                "NoT": result(0.513, 0.58, 0.499, 0.47, 0.013),
                HOSTILE: result(0.692, 0.92, 0.703, 0.004, 0.207, 0.101),
            },
            {"NoT": compared(0.011, 0.307, 0.271), HOSTILE: compared(0.19, 0.00004, 0.002)},
        ),
        attack(
            "Sign turned back",
            {REFERENCE: result(0.502, 0.54, 0.487, 0.62), "NoT": result(0.505, 0.46, 0.511, 0.39)},
            {"NoT": compared(0.003, 0.411, 0.729)},
        ),
        attack(
            "Before and after",
            {
                REFERENCE: result(0.77, 1.0, 0.781, 0.0001),
                "NoT": result(0.74, 0.96, 0.737, 0.0002),
                HOSTILE: result(0.79, 1.0, 0.801, 0.0001),
            },
            {"NoT": compared(-0.03, 0.91, 1.0), HOSTILE: compared(0.02, 0.2, 0.5)},
        ),
        attack("LiRA on those who stay", {}, {}),
    ),
    found_wins=0.77,
    found_excess=0.042,
    quality={},
    examined=(
        examined(3, 0.95, TurnedBack(True, 0.41, 0.42, 0.43)),
        examined(4, 0.85, TurnedBack(False, 0.21, 0.22, 0.23)),
    ),
)
