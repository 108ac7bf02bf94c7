"""imbalance_dual: a lower bound of what two nodes differ by, summed over steps, while some experts are free.  Floor 3.

With s[e] = 1 on node 0, -1 on node 1 and v[t] the sum of s over the experts of step t, the fullest node holds
(K[t] + |v[t]|) / 2, and |v[t]| is at least odd[t] = K[t] mod 2. For every lambda in [-1, 1]^T and every nu,

    sum_t max(|v[t]|, odd[t])  >=  D = sum_t odd[t] (1 - |lambda[t]|) - nu balance + sum_e s[e] g[e],
    g[e] = nu + sum over the steps of e of lambda[t],

where a free expert counts as -|g[e]|. So whatever the ascent does, D is a bound; it is that of the linear relaxation
(least absolute residuals) at the best lambda. Ascent: primal-dual hybrid gradient (Chambolle and Pock 2011) with the
diagonal steps of Pock and Chambolle 2011, restarted from its average where that is better (Applegate et al. 2021,
PDLP): two sparse products an iteration, microseconds each, where a simplex takes milliseconds. Does not know the tree.
"""

from __future__ import annotations

from moelab.planner.compiled import compiled

NEVER = -1e18


@compiled
def raise_dual(
    offsets, experts, first_use, uses, balance, fixed, multipliers, nu, signs, enough, rounds, iterations, least_gain,
    best_multipliers, mean_signs, slope, step_sums, sign_sums, ahead,
):  # fmt: skip
    """(D, its nu) after at most ``rounds`` of ``iterations``, from ``multipliers`` float64 [T], ``nu``, ``signs`` [E].

    ``fixed`` int8 [E]: 1, -1 or 0, free; ``balance``: sum of all s. Ends early at ``enough`` or where a round gains
    less than ``least_gain``. Written: ``best_multipliers`` [T] and ``slope`` [E] (g) of D, ``mean_signs`` [E], the
    primal average beside it. Scratch: ``step_sums`` [T], ``sign_sums`` and ``ahead`` [E].
    """
    num_steps, num_experts = len(offsets) - 1, len(fixed)
    best, best_nu = NEVER, nu
    for expert in range(num_experts):
        if fixed[expert] != 0:
            signs[expert] = fixed[expert]
    for turn in range(rounds):
        nu_sum = 0.0
        for step in range(num_steps):
            step_sums[step] = 0.0
        for expert in range(num_experts):
            sign_sums[expert] = 0.0
        for _ in range(iterations):
            total = 0.0
            for expert in range(num_experts):
                after = float(fixed[expert])
                if fixed[expert] == 0:
                    gradient = _slope(first_use, uses, multipliers, nu, expert)
                    after = signs[expert] - gradient / (first_use[expert + 1] - first_use[expert] + 1)
                    after = min(1.0, max(-1.0, after))
                ahead[expert] = 2 * after - signs[expert]
                signs[expert] = after
                sign_sums[expert] += after
                total += ahead[expert]
            nu += (total - balance) / num_experts
            nu_sum += nu
            for step in range(num_steps):
                size = offsets[step + 1] - offsets[step]
                imbalance = 0.0
                for place in range(offsets[step], offsets[step + 1]):
                    imbalance += ahead[experts[place]]
                moved = multipliers[step] + imbalance / size
                if size % 2:
                    moved = moved - 1 / size if moved > 1 / size else min(0.0, moved + 1 / size)
                multipliers[step] = min(1.0, max(-1.0, moved))
                step_sums[step] += multipliers[step]
        last = dual_value(offsets, first_use, uses, balance, fixed, multipliers, nu, 1.0)
        mean = dual_value(offsets, first_use, uses, balance, fixed, step_sums, nu_sum, 1.0 / iterations)
        gain = max(last, mean) - best
        if mean > last:
            nu = nu_sum / iterations
            for step in range(num_steps):
                multipliers[step] = step_sums[step] / iterations
            for expert in range(num_experts):
                signs[expert] = sign_sums[expert] / iterations
        if gain > 0:
            best, best_nu = max(last, mean), nu
            for step in range(num_steps):
                best_multipliers[step] = multipliers[step]
            for expert in range(num_experts):
                mean_signs[expert] = sign_sums[expert] / iterations
        if best >= enough or (turn > 0 and gain < least_gain):
            break
    for expert in range(num_experts):
        slope[expert] = _slope(first_use, uses, best_multipliers, best_nu, expert)
    return best, best_nu


@compiled
def dual_value(offsets, first_use, uses, balance, fixed, multipliers, nu, scale):
    """D of ``scale`` times ``multipliers`` and ``nu``."""
    value = -scale * nu * balance
    for step in range(len(offsets) - 1):
        if (offsets[step + 1] - offsets[step]) % 2:
            value += 1.0 - scale * abs(multipliers[step])
    for expert in range(len(fixed)):
        slope = scale * _slope(first_use, uses, multipliers, nu, expert)
        value += slope * fixed[expert] if fixed[expert] != 0 else -abs(slope)
    return value


@compiled
def _slope(first_use, uses, multipliers, nu, expert):
    total = nu
    for place in range(first_use[expert], first_use[expert + 1]):
        total += multipliers[uses[place]]
    return total


@compiled
def settle(fixed, slope, value, enough, most_on_0, most_on_1):
    """Fixes what the bound ``value`` with ``slope`` decides: False where no placement is left below ``enough``.

    A free expert on the side that its slope speaks against costs 2 |g| more; a full node sends the rest to the other.
    """
    num_experts, on_0, on_1 = len(fixed), 0, 0
    for expert in range(num_experts):
        side = fixed[expert]
        if side == 0 and value + 2 * abs(slope[expert]) >= enough:
            side = -1 if slope[expert] > 0 else 1
        fixed[expert] = side
        on_0 += side == 1
        on_1 += side == -1
    if on_0 == most_on_0 or on_1 == most_on_1:
        rest = -1 if on_0 == most_on_0 else 1
        if rest == 1:
            on_0 = num_experts - on_1
        else:
            on_1 = num_experts - on_0
        # Stored whether free or not: LLVM 20 vectorises a store under a condition on these bytes wrongly where the CPU
        # has AVX-512, and fixed experts changed sides (docs/log.md).
        for expert in range(num_experts):
            fixed[expert] = rest if fixed[expert] == 0 else fixed[expert]
    return on_0 <= most_on_0 and on_1 <= most_on_1
