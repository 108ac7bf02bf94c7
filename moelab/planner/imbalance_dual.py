"""imbalance_dual: a lower bound of what two nodes differ by, copies included, while some experts are free.  Floor 3.

With v[t] the experts of step t on node 0 alone minus those on node 1 alone, and c[t] those on both, the fullest node
holds (K[t] + max(|v[t]| - c[t], odd[t])) / 2, odd[t] = K[t] mod 2. For every |lambda[t]| <= mu[t] <= 1, nu and rho,

    sum_t max(|v[t]| - c[t], odd[t])  >=  D = sum_t odd[t] (1 - mu[t]) - nu balance - rho R + sum_e least(e),

least(e) = the least of g[e] on node 0, -g[e] on node 1, h[e] on both, of those that e may be;
g[e] = nu + the sum of lambda, h[e] = rho - the sum of mu over the steps of e; R: experts on both.

So whatever the ascent does, D is a bound; it is that of the linear relaxation at the best multipliers. Ascent:
primal-dual hybrid gradient (Chambolle and Pock 2011) with the diagonal steps of Pock and Chambolle 2011, restarted from
its average where that is better (Applegate et al. 2021, PDLP): two sparse products an iteration, microseconds each,
where a simplex takes milliseconds. An expert's (sign, share alone) and a step's (lambda, mu) lie in one triangle,
|x| <= y <= 1. Without copies mu = 1, or |lambda| in odd steps. Does not know the tree.
"""

from __future__ import annotations

from moelab.planner.compiled import compiled

NEVER = -1e18

ON_0, ON_1, ON_BOTH = 1, 2, 4
"""What an expert may be: a sum of these; one of them alone: fixed."""

STEP_ROWS = 6
LAMBDA, MU, BEST_LAMBDA, BEST_MU, _SUM_LAMBDA, _SUM_MU = range(STEP_ROWS)
EXPERT_ROWS = 12
SIGN, ALONE, MEAN_SIGN, MEAN_ALONE, SLOPE, COST_OF_BOTH = range(6)
_AHEAD_SIGN, _AHEAD_ALONE, _LAST_G, _LAST_H, _MEAN_G, _MEAN_H = range(6, EXPERT_ROWS)
NU, RHO = 0, 1


@compiled
def raise_dual(
    offsets, experts, first_use, uses, balance, num_both, allowed, prices, enough, rounds, iterations, least_gain,
    of_steps, of_experts,
):  # fmt: skip
    """D after at most ``rounds`` of ``iterations``; ends early at ``enough`` or where a round gains < ``least_gain``.

    ``allowed`` int64 [E]; ``balance``: experts on node 0 alone minus those on node 1 alone; ``prices`` float64 [2]: nu,
    rho, begun from and left as those of D. ``of_steps`` float64 [STEP_ROWS, T]: begins from ``LAMBDA`` and ``MU``,
    leaves ``BEST_LAMBDA``, ``BEST_MU``. ``of_experts`` float64 [EXPERT_ROWS, E]: begins from ``SIGN`` and ``ALONE``,
    leaves ``SLOPE`` and ``COST_OF_BOTH``, g and h of D, and ``MEAN_SIGN`` and ``MEAN_ALONE``, the primal beside it.
    """
    lambdas, mus, sum_lambda, sum_mu = of_steps[LAMBDA], of_steps[MU], of_steps[_SUM_LAMBDA], of_steps[_SUM_MU]
    signs, alone = of_experts[SIGN], of_experts[ALONE]
    sum_sign, sum_alone = of_experts[MEAN_SIGN], of_experts[MEAN_ALONE]
    ahead_sign, ahead_alone = of_experts[_AHEAD_SIGN], of_experts[_AHEAD_ALONE]
    num_steps, num_experts = len(offsets) - 1, len(allowed)
    best, best_nu, best_rho, nu, rho = NEVER, prices[NU], prices[RHO], prices[NU], prices[RHO]
    for turn in range(rounds):
        nu_sum, rho_sum = 0.0, 0.0
        for step in range(num_steps):
            sum_lambda[step] = sum_mu[step] = 0.0
        for expert in range(num_experts):
            sum_sign[expert] = sum_alone[expert] = 0.0
        for _ in range(iterations):
            total, total_both = 0.0, 0.0
            for expert in range(num_experts):
                may, sign, share = allowed[expert], 0.0, 0.0
                if may & (may - 1):
                    gradient, of_share = nu, -rho
                    for place in range(first_use[expert], first_use[expert + 1]):
                        gradient += lambdas[uses[place]]
                    if may & ON_BOTH:
                        for place in range(first_use[expert], first_use[expert + 1]):
                            of_share += mus[uses[place]]
                    stride = 1.0 / (first_use[expert + 1] - first_use[expert] + 1)
                    sign, share = _nearest(
                        may, signs[expert] - stride * gradient, alone[expert] - stride * of_share
                    )  # fmt: skip
                elif may != ON_BOTH:
                    sign, share = (1.0 if may == ON_0 else -1.0), 1.0
                ahead_sign[expert], ahead_alone[expert] = 2 * sign - signs[expert], 2 * share - alone[expert]
                signs[expert], alone[expert] = sign, share
                sum_sign[expert] += sign
                sum_alone[expert] += share
                total += ahead_sign[expert]
                total_both += 1 - ahead_alone[expert]
            nu += (total - balance) / num_experts
            nu_sum += nu
            if num_both:
                rho += (total_both - num_both) / num_experts
                rho_sum += rho
            for step in range(num_steps):
                size = offsets[step + 1] - offsets[step]
                odd, imbalance, num_alone = size % 2, 0.0, 0.0
                for place in range(offsets[step], offsets[step + 1]):
                    imbalance += ahead_sign[experts[place]]
                moved = lambdas[step] + imbalance / size
                if num_both:
                    for place in range(offsets[step], offsets[step + 1]):
                        num_alone += ahead_alone[experts[place]]
                    moved, mus[step] = _in_triangle(moved, mus[step] + (num_alone - size - odd) / size)
                else:
                    if odd:
                        moved = moved - 1 / size if moved > 1 / size else min(0.0, moved + 1 / size)
                    moved = min(1.0, max(-1.0, moved))
                    mus[step] = abs(moved) if odd else 1.0
                lambdas[step] = moved
                sum_lambda[step] += moved
                sum_mu[step] += mus[step]
        last = dual_value(
            offsets, first_use, uses, balance, num_both, allowed, lambdas, mus, nu, rho, 1.0, of_experts[_LAST_G],
            of_experts[_LAST_H],
        )  # fmt: skip
        mean = dual_value(
            offsets, first_use, uses, balance, num_both, allowed, sum_lambda, sum_mu, nu_sum, rho_sum, 1.0 / iterations,
            of_experts[_MEAN_G], of_experts[_MEAN_H],
        )  # fmt: skip
        gain, better = max(last, mean) - best, _LAST_G
        for expert in range(num_experts):
            sum_sign[expert] /= iterations
            sum_alone[expert] /= iterations
        if mean > last:
            better, nu, rho = _MEAN_G, nu_sum / iterations, rho_sum / iterations
            for step in range(num_steps):
                lambdas[step], mus[step] = sum_lambda[step] / iterations, sum_mu[step] / iterations
            for expert in range(num_experts):
                signs[expert], alone[expert] = sum_sign[expert], sum_alone[expert]
        if gain > 0:
            best, best_nu, best_rho = max(last, mean), nu, rho
            for step in range(num_steps):
                of_steps[BEST_LAMBDA, step], of_steps[BEST_MU, step] = lambdas[step], mus[step]
            for expert in range(num_experts):
                of_experts[SLOPE, expert] = of_experts[better, expert]
                of_experts[COST_OF_BOTH, expert] = of_experts[better + 1, expert]
        if best >= enough or (turn > 0 and gain < least_gain):
            break
    prices[NU], prices[RHO] = best_nu, best_rho
    return best


@compiled
def dual_value(
    offsets, first_use, uses, balance, num_both, allowed, lambdas, mus, nu, rho, scale, slope, cost_of_both
):  # fmt: skip
    """D of ``scale`` times the multipliers and prices; writes its g and h."""
    value = -scale * (nu * balance + rho * num_both)
    for step in range(len(offsets) - 1):
        if (offsets[step + 1] - offsets[step]) % 2:
            value += 1.0 - scale * mus[step]
    for expert in range(len(allowed)):
        of_sign, of_both = nu, rho
        for place in range(first_use[expert], first_use[expert + 1]):
            of_sign += lambdas[uses[place]]
        if num_both:
            for place in range(first_use[expert], first_use[expert + 1]):
                of_both -= mus[uses[place]]
        slope[expert], cost_of_both[expert] = scale * of_sign, scale * of_both
        value += _least(allowed[expert], slope[expert], cost_of_both[expert])
    return value


@compiled
def settle(allowed, slope, cost_of_both, value, enough, most_on_0, most_on_1, num_both):
    """Takes away what the bound ``value`` rules out: False where no placement is left below ``enough``.

    An expert that is not what costs least raises the bound by the difference. ``most_on_0``, ``most_on_1``: experts on
    that node alone; where as many are fixed, or on both, the others are not. ``allowed`` is of int64: LLVM 20
    vectorises a store under a condition on bytes wrongly where the CPU has AVX-512 (docs/log.md).
    """
    for expert in range(len(allowed)):
        may, g, h = allowed[expert], slope[expert], cost_of_both[expert]
        rest = value - _least(may, g, h)
        keep = (rest + g < enough) * ON_0 + (rest - g < enough) * ON_1 + (rest + h < enough) * ON_BOTH
        allowed[expert] = may if may & (may - 1) == 0 else may & keep
    while True:
        on_0, on_1, on_both, num_left = 0, 0, 0, 0
        for expert in range(len(allowed)):
            may = allowed[expert]
            if may == 0:
                return False
            on_0 += may == ON_0
            on_1 += may == ON_1
            on_both += may == ON_BOTH
            num_left += may & (may - 1) != 0
        if on_0 > most_on_0 or on_1 > most_on_1 or on_both > num_both:
            return False
        keep = (on_0 < most_on_0) * ON_0 + (on_1 < most_on_1) * ON_1 + (on_both < num_both) * ON_BOTH
        if num_left == 0 or keep == ON_0 + ON_1 + ON_BOTH:
            return True
        is_changed = False
        for expert in range(len(allowed)):
            may = allowed[expert]
            after = may if may & (may - 1) == 0 else may & keep
            is_changed |= after != may
            allowed[expert] = after
        if not is_changed:
            return True


@compiled
def _least(may, g, h):
    least = 1e18
    if may & ON_0:
        least = g
    if may & ON_1:
        least = min(least, -g)
    if may & ON_BOTH:
        least = min(least, h)
    return least


@compiled
def _nearest(may, sign, share):
    """The point of the states in ``may``, two or three, that is nearest to (sign, share alone)."""
    if may == ON_0 + ON_1:
        return min(1.0, max(-1.0, sign)), 1.0
    if may == ON_0 + ON_1 + ON_BOTH:
        return _in_triangle(sign, share)
    side = 1.0 if may & ON_0 else -1.0
    share = min(1.0, max(0.0, (side * sign + share) / 2))
    return side * share, share


@compiled
def _in_triangle(x, y):
    """The nearest point with |x| <= y <= 1."""
    side = 1.0 if x >= 0 else -1.0
    x = abs(x)
    if x <= y:
        return side * min(1.0, x), min(1.0, y)
    y = min(1.0, max(0.0, (x + y) / 2))
    return side * y, y
