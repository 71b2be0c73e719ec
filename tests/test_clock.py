"""Time that cannot be set: effects of clock jumps, reboots and lost files on the mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante import clock as module
from restante.clock import PLAUSIBLE, RELEASED, SETTLING_TIME, SLACK, UNKNOWN, Clock, is_credible

from .machine import DAY, TODAY, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "users").write_bytes(b"")
    os.utime(tmp_path / "users", (TODAY, TODAY))
    made = Machine(tmp_path / "clock")
    made.clock().advance()
    return made


def test_a_right_clock_is_believed_at_once(machine: Machine) -> None:
    reading = machine.run(10 * DAY)
    assert reading.proven == reading.now == TODAY + 10 * DAY
    assert not reading.is_behind


@pytest.mark.parametrize("jump", [2 * SLACK, DAY, 300 * DAY, 50 * 365 * DAY])
def test_a_clock_that_jumps_ahead_is_believed_after_a_day(machine: Machine, jump: float) -> None:
    reading = machine.set(TODAY + jump)
    assert reading.now == TODAY + jump
    assert reading.proven == TODAY
    reading = machine.run(SETTLING_TIME - 1)
    assert reading.proven == pytest.approx(TODAY + SETTLING_TIME - 1)
    assert not reading.is_behind
    reading = machine.run(1)
    assert reading.proven == reading.now


@pytest.mark.parametrize("jump", [1.0, SLACK - 1])
def test_small_step_is_not_a_jump(machine: Machine, jump: float) -> None:
    for now in (TODAY + jump, TODAY):
        reading = machine.set(now)
        assert reading.proven == now
        assert not reading.is_behind


def test_a_clock_that_is_put_right_leaves_no_trace(machine: Machine) -> None:
    machine.set(TODAY + 300 * DAY)
    machine.run(SETTLING_TIME - 1)
    reading = machine.set(machine.true)
    assert reading.proven == reading.now == machine.true
    machine.set(machine.true + 300 * DAY)
    assert machine.run(SETTLING_TIME - 1).proven == pytest.approx(machine.true)


def test_each_jump_waits_a_day_of_its_own(machine: Machine) -> None:
    first = machine.set(TODAY + 300 * DAY).now
    machine.run(SETTLING_TIME - 600)
    machine.set(TODAY + 9000 * DAY)
    reading = machine.run(1200)
    assert reading.proven == pytest.approx(first + SETTLING_TIME + 600)
    assert machine.run(SETTLING_TIME).proven == machine.now


def test_a_clock_that_was_ahead_and_is_put_back(machine: Machine) -> None:
    """It was ahead for more than a day, so it was trusted."""
    machine.set(TODAY + 300 * DAY)
    machine.run(2 * DAY)
    reading = machine.set(machine.true)
    assert reading.is_behind
    assert reading.proven == machine.true, "what was due is due"
    assert machine.clock().stamp() == UNKNOWN
    reading = machine.run(SETTLING_TIME)
    assert not reading.is_behind
    assert machine.clock().stamp() == int(machine.true)
    machine.set(machine.true + 300 * DAY)
    assert machine.clock().read().proven == machine.true, "the old mark is forgotten"


def test_a_machine_without_a_battery_boots_in_1970_and_jumps_to_today(machine: Machine) -> None:
    machine.now = 0.0
    reading = machine.reboot(off=600)
    assert reading.is_behind
    assert reading.proven == machine.now == 620.0
    assert machine.clock().stamp() == UNKNOWN
    assert machine.run(10 * DAY).is_behind, "however long: that year is over"
    reading = machine.set(machine.true)
    assert reading.proven == reading.now
    assert not reading.is_behind


def test_a_machine_whose_clock_stops_with_it(machine: Machine) -> None:
    """With fake-hwclock time continues from when the machine was switched off."""
    machine.reboot(off=90 * DAY, clock_stops=True)
    before = machine.run(300)
    assert before.proven == before.now
    reading = machine.set(machine.true)
    assert reading.proven == before.proven
    assert machine.run(SETTLING_TIME).proven == machine.now


def test_a_machine_that_is_off_at_night_goes_on(machine: Machine) -> None:
    """16 hours without power look like a jump, but the mark still advances."""
    for _ in range(12):
        machine.reboot(off=16 * 3600.0)
        reading = machine.run(8 * 3600.0)
        assert reading.proven <= machine.true
    assert reading.proven > machine.true - 5 * DAY


def test_reboot_within_the_hour_is_not_a_jump(machine: Machine) -> None:
    reading = machine.reboot(off=900)
    assert reading.proven == reading.now == machine.true


def test_the_machine_runs_on_though_nothing_of_ours_does(machine: Machine) -> None:
    """For example with a collector that cron starts once a day, or a stopped server."""
    machine.now += 20 * DAY
    machine.running += 20 * DAY
    reading = machine.clock().advance()
    assert reading.proven == reading.now


def test_the_machine_runs_on_after_a_reboot_though_nothing_of_ours_does(machine: Machine) -> None:
    machine.boot += 1
    machine.running = 3 * DAY
    machine.now += 3 * DAY + 600
    reading = machine.clock().advance()
    assert reading.proven == reading.now


@pytest.mark.parametrize("second_in_sandbox", [True, False])
def test_processes_in_and_outside_a_sandbox_share_the_mark(
    machine: Machine, second_in_sandbox: bool
) -> None:
    """A service with ``ProcSubset=pid``, and another one or the commands of an operator."""
    machine.boot += 1
    machine.running = 50 * DAY
    clocks = machine.clock(in_sandbox=True), machine.clock(in_sandbox=second_in_sandbox)
    machine.clock().advance()
    for _ in range(100):
        for clock in clocks:
            reading = clock.advance()
            assert reading.mark == reading.now
            machine.now += 60
            machine.running += 60
    machine.now += 300 * DAY  # jumps
    for _ in range(100):
        for clock in clocks:
            assert clock.advance().proven < TODAY + SLACK + DAY


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_state_file_restored_on_a_machine_with_a_longer_uptime(
    machine: Machine, before: bool, after: bool
) -> None:
    """Both services may run in a sandbox, which hides that it is another machine."""
    machine.clock(in_sandbox=before).advance()
    machine.boot += 1
    machine.running = 300 * DAY
    machine.now += 600
    machine.true += 600
    reading = machine.clock(in_sandbox=after).advance()
    assert reading.mark == reading.now
    assert not reading.is_behind
    machine.now += 100 * DAY  # jumps
    assert machine.clock(in_sandbox=after).advance().proven <= machine.true + SLACK


def test_state_file_that_counted_from_the_start_of_a_process(machine: Machine) -> None:
    """Earlier versions wrote it in a sandbox."""
    assert machine.path is not None
    state = {"mark": TODAY, "boot": "process 7", "running": 90.0, "claim": None, "waited": 0.0}
    machine.path.write_text(json.dumps(state))
    machine.running = 300 * DAY
    for in_sandbox in (True, False):
        machine.now += 60
        machine.running += 60
        reading = machine.clock(in_sandbox=in_sandbox).advance()
        assert reading.mark == reading.now


def test_uptime_does_not_depend_on_the_process(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BOOT_ID", "/does/not/exist")
    boot, running = module._running()
    assert boot == ""
    assert running == pytest.approx(module.elapsed(), abs=60)


def test_a_clock_that_is_put_half_right_is_believed_after_a_day(machine: Machine) -> None:
    machine.set(TODAY + 300 * DAY)
    machine.run(SETTLING_TIME / 2)
    machine.set(TODAY + 100 * DAY)
    assert machine.run(SETTLING_TIME - 1).proven == pytest.approx(TODAY + 1.5 * SETTLING_TIME - 1)
    reading = machine.run(1)
    assert reading.proven == reading.now == TODAY + 100 * DAY + SETTLING_TIME


def test_another_process_sees_the_mark_before_it_is_written_again(machine: Machine) -> None:
    machine.set(TODAY + 300 * DAY)
    machine.now += 500
    machine.running += 500
    assert machine.clock().read().proven == TODAY + 500


def test_the_operator_may_vouch_for_the_clock(machine: Machine) -> None:
    machine.set(TODAY + 300 * DAY)
    assert machine.clock().accept().proven == TODAY + 300 * DAY
    assert machine.run(60).proven == machine.now


# -- The file


@pytest.mark.parametrize("newest", [TODAY - 300 * DAY, TODAY, None])
def test_lost_mark_is_replaced_by_the_newest_file_beside_it(
    machine: Machine, newest: float | None
) -> None:
    assert machine.path is not None
    users = machine.path.with_name("users")
    if newest is None:
        users.unlink()
    else:
        os.utime(users, (newest, newest))
    machine.path.unlink()
    reading = machine.clock().advance()
    assert reading.proven == (RELEASED if newest is None else newest)
    assert machine.run(SETTLING_TIME).proven == machine.now


def test_a_file_of_the_future_is_no_evidence(machine: Machine) -> None:
    assert machine.path is not None
    machine.path.unlink()
    os.utime(machine.path.with_name("users"), (TODAY + DAY, TODAY + DAY))
    assert machine.clock().advance().proven == RELEASED
    os.utime(machine.path.with_name("users"), (TODAY + 1, TODAY + 1))
    machine.path.unlink()
    assert machine.clock().advance().proven == TODAY, "but for the clock of a file system"


def test_a_backup_that_is_restored_makes_the_clock_wait(machine: Machine) -> None:
    assert machine.path is not None
    backup = machine.path.read_bytes()
    machine.run(100 * DAY)
    machine.path.write_bytes(backup)
    machine.reboot(off=0)
    assert machine.clock().read().proven == pytest.approx(TODAY + 20)
    assert machine.run(SETTLING_TIME).proven == machine.now


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b'{"mark": 1}',
        b'{"mark": NaN, "boot": "", "running": 0, "claim": null, "waited": 0}',
        b'{"mark": 1e300, "boot": "", "running": 0, "claim": null, "waited": 0}',
        b'{"mark": "soon", "boot": "", "running": 0, "claim": null, "waited": 0}',
        b'{"mark": 1, "boot": "", "running": 0, "claim": null, "waited": 0}',
    ],
)
def test_nonsense_in_the_file_is_a_lost_file(machine: Machine, octets: bytes) -> None:
    assert machine.path is not None
    os.utime(machine.path.with_name("users"), (TODAY - 50 * DAY, TODAY - 50 * DAY))
    machine.path.write_bytes(octets)
    assert machine.clock().read().proven == TODAY - 50 * DAY
    machine.clock().advance()
    assert json.loads(machine.path.read_bytes())["mark"] == TODAY - 50 * DAY


def test_a_file_that_cannot_be_written_raises_and_can_still_be_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.path is not None
    before = machine.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    machine.now += 60
    machine.running += 60
    with pytest.raises(OSError, match="No space"):
        machine.clock().advance()
    assert machine.path.read_bytes() == before
    assert machine.clock().read().proven == TODAY + 60
    assert sorted(each.name for each in machine.path.parent.iterdir()) == [
        "clock",
        "clock.lock",
        "users",
    ]


def test_no_others_may_read_or_change_it(machine: Machine) -> None:
    assert machine.path is not None
    assert machine.path.stat().st_mode & 0o777 == 0o600


def test_many_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "clock")
    threads = [threading.Thread(target=machine.clock().advance) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert machine.clock().read().proven == RELEASED
    assert json.loads((tmp_path / "clock").read_bytes())["claim"] == TODAY


def test_without_a_file_it_lasts_as_long_as_the_object() -> None:
    machine = Machine(None)
    clock = machine.clock()
    assert clock.advance().proven == TODAY
    machine.now += 300 * DAY
    assert clock.advance().proven == TODAY


def test_the_real_clock_of_this_machine() -> None:
    clock = Clock()
    reading = clock.advance()
    assert reading.now == reading.proven == pytest.approx(clock.read().now, abs=60)
    assert clock.stamp() == pytest.approx(reading.now, abs=60)


def test_it_can_be_imported_where_posix_modules_are_missing() -> None:
    code = "import sys; sys.modules['fcntl'] = None\nfrom restante.clock import Clock\n"
    code += f"from pathlib import Path\nClock(Path({os.devnull!r})).read()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# -- Stamps


@pytest.mark.parametrize(
    ("stamp", "counts"),
    [
        (TODAY, True),
        (TODAY + SLACK, True),
        (TODAY + SLACK + 1, False),
        (UNKNOWN, False),
        (PLAUSIBLE, True),
        (PLAUSIBLE - 1, False),
        (0, False),
        (-1, False),
    ],
)
def test_stamps_in_the_future_or_1970_are_not_credible(stamp: float, counts: bool) -> None:
    assert is_credible(stamp, TODAY) is counts


# -- Any history of a machine

_steps = st.one_of(
    st.tuples(st.just("run"), st.floats(1, 3 * DAY)),
    st.tuples(st.just("jump"), st.floats(-400 * DAY, 400 * DAY)),
    st.tuples(st.just("right"), st.just(0.0)),
    st.tuples(st.just("reboot"), st.floats(0, 3 * DAY)),
)


@given(st.lists(_steps, max_size=12), st.booleans())
def test_wrong_clock_is_not_trusted_until_it_has_run_for_a_day(
    steps: list[tuple[str, float]], swaps: bool
) -> None:
    """A proven time is past unless the clock was wrong for a day; each small step of the clock is
    tolerated."""
    machine = Machine(None)
    in_sandbox = False
    clock = Clock(
        None,
        wall=lambda: machine.now,
        running=lambda: ("" if in_sandbox else f"boot {machine.boot}", machine.running),
    )
    clock.advance()
    wrong_for = 0.0
    for what, amount in steps:
        in_sandbox ^= swaps
        if what == "run":
            machine.now += amount
            machine.true += amount
            machine.running += amount
            wrong_for += amount
        elif what == "jump":
            machine.now = max(RELEASED, machine.now + amount)
        elif what == "right":
            machine.now = machine.true
        else:
            machine.boot += 1
            machine.running = 0.0
            machine.now += amount
            machine.true += amount
        reading = clock.advance()
        if abs(machine.now - machine.true) <= SLACK:
            wrong_for = 0.0
        if wrong_for >= SETTLING_TIME:
            return
        assert reading.proven <= machine.true + SLACK * max(1, [w for w, _ in steps].count("jump"))
        assert reading.proven <= reading.now


@given(st.lists(_steps, max_size=12))
def test_steady_clock_is_believed_in_the_end(
    steps: list[tuple[str, float]],
) -> None:
    machine = Machine(None)
    clock = machine.clock()
    clock.advance()
    for what, amount in steps:
        if what == "run":
            machine.now += amount
            machine.running += amount
        elif what == "reboot":
            machine.boot += 1
            machine.running = 0.0
            machine.now += amount
        else:
            machine.now = max(RELEASED, machine.now + amount)
        clock.advance()
    for _ in range(50):
        machine.now += 3600
        machine.running += 3600
        reading = clock.advance()
    assert reading.proven == reading.now
    assert not reading.is_behind
