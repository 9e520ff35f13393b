"""The algebra of one step of the fit, and the constants that numba_step.py and triton_step.py share.

Sums. With x = log n, m the law's log loss and u = exp(log_beta - alpha x - log_eps) the law's reducible part over eps,

    p = dm/d log_beta = u / (1 + u)        q = dm/d log_eps = 1 - p        dm/d alpha = -x p        J = (p, q, -x p)

With the residual r = y - m, the Huber loss rho of width delta and a point's weight w, the sums over all points are

    loss      sum w rho(r)
    gradient  -sum w clip(r, -delta, delta) J        for rho'(r) = clip(r, -delta, delta) and dr = -J
    inner     sum over |r| <= delta of w J J'        rho's curvature is 1 there: its Hessian but for the law's own bend
    outer     sum over |r| > delta of w delta / |r| J J'

rho has no curvature beyond delta. The parabola that touches rho at r and lies above it everywhere has delta / |r|, so
inner + outer majorises F (iteratively reweighted least squares); inner alone is Newton's matrix. A step uses

    H = max(1, damping) inner + damping outer        damping -> 0: Newton; 1: the majoriser; above: shorter steps

Coordinates. Losses seldom tell eps, beta and alpha apart: F has long valleys, curved in (log_beta, log_eps, alpha),
where plain Newton steps crawl for hundreds of iterations. With x0 the mean of log n, E = eps, v = beta exp(-alpha x0),

    L = c + (s / alpha) (exp(-alpha (x - x0)) - 1)        c = E + v the level at x0        s = alpha v the slope there

and in (c, s, alpha) the valley runs straight along alpha: a handful of steps suffice. Where a kink holds log_beta the
coordinates are (c, alpha) along that kink, where one holds log_eps they are (log v, alpha), with both alpha alone.

Pieces. The penalty is separable and piecewise linear: each parameter is free, held on a kink, or past it, where the
penalty adds a slope. Every combination (a piece) gives a 3 x 3 linear system; the model (quadratic plus exact penalty)
is evaluated at each of their solutions and the least one is the step. Three more pieces shrink v alone, for laws that
vanish into a constant.
"""

# Slots of the running sums. B, E, A stand for log_beta, log_eps, alpha; of a symmetric matrix the upper triangle.
NUM_SUMS = 16
LOSS = 0
GRADIENT = 1, 2, 3  # B, E, A
INNER = 4, 5, 6, 7, 8, 9  # BB, BE, BA, EE, EA, AA
OUTER = 10, 11, 12, 13, 14, 15  # the same

# States of a parameter in a piece, and the slope that the penalty adds in each.
FREE, HELD = 0, 1
PAST, VANISHING = 2, 3  # further states of log_beta, the first of log_eps too
HELD_HIGH, PAST_LOW, PAST_HIGH = 2, 3, 4  # further states of alpha, which has two kinks
BETA_PENALTY_SLOPE = (0.0, 0.0, 1.0, 0.0)
EPS_PENALTY_SLOPE = (0.0, 0.0, -1.0)
ALPHA_PENALTY_SLOPE = (0.0, 0.0, 0.0, -1.0, 1.0)

# The face a search is confined to: none, or the kink on which it holds one parameter.
NO_FACE, FACE_LOG_BETA, FACE_LOG_EPS, FACE_ALPHA_HIGH, FACE_ALPHA_LOW = 0, 1, 2, 3, 4

SHRINK = 0.01  # least factor by which v changes in a step; 1 / SHRINK the largest
SMALLEST_ALPHA = 1e-9  # the coordinates divide by alpha
TINY = 1e-14  # added to diagonals: a piece without curvature stays solvable
