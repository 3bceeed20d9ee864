"""Every numeric limit of the harness, each with where it comes from. No other file has one.

The figures named "measured" are in ``docs/verdicts.md``, with the run that gave them.
"""

from __future__ import annotations

import math

#: Unit roundoff times two: the gap between 1.0 and the next float (IEEE 754-2019).
EPS: dict[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}

#: Floor of the same-function bound, relative. A right port sits at 1e-15 to 5e-14 in promoted
#: float64 and the smallest seeded fault (one weight, +1e-6) at 1e-8 (design, Verdicts): the floor
#: lies between the two, nearer to the right ports.
SAME_FUNCTION_FLOOR = 1e-12

#: The same-function bound is this many times the reference's own float64 spread. Two
#: evaluations that differ only in the order of their sums differ by a random walk of roundoffs
#: (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2: the error of
#: a sum grows with sqrt(n) u in practice, n u at worst); ten spreads cover the tail of the
#: largest of some thousands of entries.
SAME_FUNCTION_SPREADS = 10.0

#: Ceiling of the same-function bound, relative: ten times below the smallest seeded fault (1e-8,
#: as above). A reference whose own spread is larger (a router at a tie) must not make its bound
#: admit everything.
SAME_FUNCTION_CEILING = 1e-9

#: Same precision: the subject's error over the reference's own (design, Verdicts). Two warns.
SAME_PRECISION_WARN = 2.0
SAME_PRECISION_FAIL = 4.0

#: Floor of the denominator of that ratio, in units in the last place: an implementation that
#: happens to be exact where the reference is exact must not turn one rounding into a failure.
SAME_PRECISION_FLOOR_ULP = 2.0

#: The same floor where every side works on the very same numbers, those of the dtype itself (a
#: component on its own, in bfloat16 or float16): rounding every entry once, to the nearest, leaves
#: at most half a unit in the last place, evenly distributed: 1 / (2 sqrt(3)) of one, root mean
#: square (Widrow and Kollar, Quantization Noise, 2008, section 1.2).
ONE_ROUNDING_ULP = 1 / (2 * math.sqrt(3))

#: What rounding a single number leaves at the least, root mean square, relative to the number, in
#: units in the last place: as above, for a number at the upper end of its binade. A norm or a
#: softmax that keeps to float32 leaves none of it in what it divides a row by; half of it is where
#: the two are told apart.
SHARED_ROUNDING_ULP = 1 / (4 * math.sqrt(3)) / 2

#: How many standard errors an estimate must be from zero to be taken for anything else: one in
#: three million for a normal variable (Lyons, Discovering the significance of 5 sigma,
#: arXiv:1310.1284), with some ten thousand estimates a run.
STANDARD_ERRORS = 5.0

#: How often the reference's weights are rounded anew to see what weight processing may cost. At
#: an ill-conditioned position an error is one draw of a normal variable x0; the chance that
#: |x0| > 4 max(|x1|, ..., |xK|) for K further draws is 16 % for K = 1, below 1 % from K = 4 on
#: (numerically; K counts the unperturbed run too).
REROUNDED_DRAWS = 3

#: Relative size below which a truth tensor counts as zero. Smallest normal float32, so that a
#: site that is exactly zero on the reference's side must be zero on the subject's.
ZERO = float(2.0**-126)

#: Additive mask values below this are "masked": every library uses -inf, finfo.min of some
#: float dtype, or a large constant (the least negative of which is HookedTransformer's and
#: GPT-J's -1e9 and finfo(float16).min = -65504).
MASKED_BELOW = -6e4

#: Weights that a port derives by one float operation (an embedding scaled, 1 added to a norm's
#: weight) are exact to one rounding of the checkpoint's dtype on either side: two roundings.
DERIVED_WEIGHT_ULP = 2.0

#: Step of a central difference of fourth order, relative to the change along which it is taken.
#: Its error is step^4 / 30 times the fifth derivative over the first, and roundoff over step
#: (Abramowitz and Stegun, table 25.2): 1e-10 for most of what twins compute, 3e-9 at most.
DIFFERENCE_STEP = 1e-4

#: How far a first-order estimate may be from that central difference, relative to the sum of its
#: parts' sizes: thirty times its largest error, ten times below the smallest seeded fault of an
#: edit (one part in a million).
DIFFERENCE_ALLOWED = 1e-7

# --- what the words of an explanation depend on; no verdict does ---------------------------------

#: Numbers and tensors that agree to this, relative, are called the same: far above what roundoff
#: leaves in promoted float64 (1e-15 to 5e-14, as above), far below the smallest seeded fault of a
#: formula (a rotary base 0.01 % off).
SAME = 1e-9

#: Two heads or slopes that agree to this, relative, are candidates for being the same ones; what
#: follows from that is put to the test like any hypothesis.
SIMILAR = 1e-6

#: A number that a person wrote is this near to the one fitted, relative, or the fitted one is
#: stated as it is; the written one is put to the test like any hypothesis.
ABOUT = 1e-3

#: A cause leaves at most this part of the difference unexplained: far below what any second fault
#: in the same place leaves, far above roundoff.
UNEXPLAINED = 1e-3

#: An edit that moves the logits by less than this part of what it should is said to have had no
#: effect: what roundoff leaves between two batch shapes (1e-15 to 5e-14, as above) is far below.
NO_EFFECT = 1e-9

#: Probabilities below this underflow on one side or the other; they tell nothing of a mask.
UNDERFLOW = 1e-30

#: Above this, relative, a difference is plain in float32: a reproduction needs no promotion. Ten
#: thousand times float32's roundoff and more.
PLAIN_IN_FLOAT32 = 1e-2

#: What a standalone reproduction calls no difference, relative: a hundred times under what makes
#: it run in float32 at all; in promoted float64 ten times the floor, for it knows no spread.
SCRIPT_ALLOWED: dict[str, float] = {"float32": 1e-4, "float64": 10 * SAME_FUNCTION_FLOOR}


def same_number(a: float, b: float) -> bool:
    """Whether two numbers are the same up to roundoff."""
    return math.isclose(a, b, rel_tol=SAME)


def about(a: float, b: float) -> bool:
    """Whether one number may be the other, rounded."""
    return math.isclose(a, b, rel_tol=ABOUT)


def same_function(spread: float) -> tuple[float, str]:
    """The bound on a relative difference in promoted float64, and where it comes from.

    Args:
        spread: the reference's own float64 spread at the site (relative), 0.0 if unmeasured.
    """
    scaled = SAME_FUNCTION_SPREADS * spread
    if not math.isfinite(scaled) or scaled <= SAME_FUNCTION_FLOOR:
        return SAME_FUNCTION_FLOOR, f"floor {SAME_FUNCTION_FLOOR:.0e} of promoted float64"
    if scaled > SAME_FUNCTION_CEILING:
        return (
            SAME_FUNCTION_CEILING,
            f"ceiling {SAME_FUNCTION_CEILING:.0e}, for the reference's own spread is {spread:.1e}",
        )
    return scaled, f"{SAME_FUNCTION_SPREADS:g} x the reference's own float64 spread {spread:.1e}"


def same_precision(
    reference_error: float, dtype: str, *, same_numbers: bool = False
) -> tuple[float, float, str]:
    """The bounds on a relative rms error in ``dtype``: (fails above, warns above, source).

    Args:
        reference_error: the reference's own error against the promoted truth, the largest
            over its variants.
        dtype: name of the dtype judged.
        same_numbers: the truth was computed from the weights and inputs as the dtype holds them.
    """
    ulp = ONE_ROUNDING_ULP if same_numbers else SAME_PRECISION_FLOOR_ULP
    floor = ulp * EPS[dtype]
    # A reference that overflows admits nothing: an infinite bound would pass everything.
    usable = math.isfinite(reference_error) and reference_error > floor
    base = reference_error if usable else floor
    what = (
        f"the reference's own {dtype} error {reference_error:.1e}"
        if base == reference_error
        else f"{ulp:.2g} ulp of {dtype}"
    )
    return (
        SAME_PRECISION_FAIL * base,
        SAME_PRECISION_WARN * base,
        f"{SAME_PRECISION_FAIL:g} x {what}",
    )


def shared_precision(reference_error: float, dtype: str) -> tuple[float, str]:
    """The bound on the relative error that all entries of a row share, and where it comes from.

    No position is ill-conditioned here, and an average over rows tells twice from once: what warns
    elsewhere fails.

    Args:
        reference_error: the reference's own. It is not zero: entries of a narrow dtype have few
            mantissas, and those that are alike are rounded alike.
        dtype: name of the dtype judged.
    """
    own, floor = SAME_PRECISION_WARN * reference_error, SHARED_ROUNDING_ULP * EPS[dtype]
    if math.isfinite(own) and own > floor:
        what = f"the reference's own, {reference_error:.1e}, that a row's entries share"
        return own, f"{SAME_PRECISION_WARN:g} x {what}"
    return floor, f"half of the least that one rounding to {dtype} leaves in a row's scale"


def near_tie(reference_error: float, dtype: str) -> tuple[float, str]:
    """The largest margin, relative to the scores, of a choice that a right port may turn.

    Two scores each of which may be wrong by a right port's error change places if they are no
    further apart than twice that.

    Args:
        reference_error: of the scores chosen by, the largest, relative to a token's largest.
        dtype: name of the dtype judged.
    """
    allowed, _, source = same_precision(reference_error, dtype)
    return 2 * allowed, f"2 x {source}, in scores"


#: What a machine must have of memory, over what a run is predicted to need: 15 %, which predictions
#: are held to. Peaks of runs lay up to 8 % off theirs (docs/footprint.md); other versions of the
#: libraries, and architectures that were not measured, may lie further off.
FOOTPRINT_MARGIN = 1.15
