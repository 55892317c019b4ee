"""The reduced model: its closed form, solver and fixed point against each other.

All are compared with a plain loop of small steps.
"""

import math

import numpy as np
import pytest

from memnb.toy import closed_form, fixed_point, solve, trajectories

T = np.linspace(0, 30, 61)


@pytest.mark.parametrize("rho", [0.01, 0.2, 0.9])
@pytest.mark.parametrize("m_n0, m_c0", [(-1, 1), (-3, 4), (2, 1)])
def test_closed_form_and_solver_agree(rho, m_n0, m_c0):
    assert np.abs(closed_form(T, rho, m_n0, m_c0) - solve(T, rho, 1.0, m_n0, m_c0)).max() < 1e-10


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_solver_against_runge_kutta(k, rho=0.2, m_n0=-1.0, m_c0=1.0):
    C = m_c0 + k * m_n0
    m = m_n0
    n = 4000

    def f(m):
        return rho * math.exp(-m) - k * (1 - rho) * math.exp(-C) * math.exp(k * m)

    for _ in range(n):
        h = 4 / n
        a = f(m)
        b = f(m + h / 2 * a)
        c = f(m + h / 2 * b)
        d = f(m + h * c)
        m += h / 6 * (a + 2 * b + 2 * c + d)
    assert solve(np.array([0, 4.0]), rho, k, m_n0, m_c0)[-1] == pytest.approx(m, abs=1e-10)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_fixed_point_is_one_and_is_reached(k):
    star = fixed_point(0.3, k)
    assert 0.3 * math.exp(-star) == pytest.approx(
        k * 0.7 * math.exp(-(1 - k)) * math.exp(k * star), rel=1e-12
    )
    assert solve(np.array([0, 200.0]), 0.3, k)[-1] == pytest.approx(star, abs=1e-10)


def test_margins_keep_their_weighted_sum():
    f = trajectories([0.2], k=2.0).pivot("group", index="time", values="margin")
    assert (f["clean"] + 2 * f["noisy"]).to_numpy() == pytest.approx(1 + 2 * -1)


def test_the_noisy_margin_falls_below_a_critical_rate():
    critical = 1 / (1 + math.e**2)  # where the fixed point is the start, m_n = -1
    for rho, sign in ((critical * 0.9, -1), (critical * 1.1, 1)):
        m = closed_form(T, rho)
        assert sign * (m[-1] - m[0]) > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: fixed_point(0),
        lambda: fixed_point(1),
        lambda: fixed_point(0.2, k=0),
        lambda: solve(T, 1.5),
        lambda: closed_form(T, -0.1),
        lambda: trajectories([0.2], t_end=0),
        lambda: trajectories([]),
        lambda: trajectories([0.2], points=1),
        lambda: closed_form(T, 0.2, math.nan),
        lambda: closed_form(T, 0.2, 1e308),
        lambda: fixed_point(0.2, 1, 1e308, 1e308),
        lambda: solve(T[::-1], 0.2),
        lambda: solve([], 0.2),
        lambda: solve([-1, 1], 0.2),
        lambda: closed_form([-1], 0.2),
        lambda: solve(5.0, 0.2),
        lambda: closed_form([math.inf], 0.2),
    ],
)
def test_bad_values(call):
    with pytest.raises(ValueError, match="must"):
        call()


@pytest.mark.parametrize("k", [0.5, 3.0])
def test_a_margin_does_not_depend_on_the_other_times(k):
    whole = solve(T, 0.2, k)
    for i in (0, 1, 10, 60):
        assert solve([T[i]], 0.2, k) == pytest.approx(whole[i], abs=1e-10)
    few, many = (trajectories([0.2], 10, k, points=n).filter(group="noisy") for n in (3, 201))
    right = many.filter(many["time"].is_in([0.0, 5.0, 10.0]))["margin"]
    assert few["margin"].to_numpy() == pytest.approx(right.to_numpy(), abs=1e-10)


@pytest.mark.parametrize("m_n0, m_c0", [(-300, 300), (300, -300), (-300, 0), (300, 0), (0, 300)])
def test_the_closed_form_from_margins_far_from_balance(m_n0, m_c0):
    m = closed_form(np.array([0, 1e-9, 1, 1e300]), 0.2, m_n0, m_c0)
    assert np.isfinite(m).all()
    assert m[0] == pytest.approx(m_n0, abs=1e-10)
    assert m[-1] == pytest.approx(fixed_point(0.2, 1, m_n0, m_c0), abs=1e-10)
