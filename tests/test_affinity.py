"""Pinning: one processor per core first, fast cores first, and never more than the process may use."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln import affinity
from edgekiln.affinity import one_per_core, parse_cpu_list, pin


def topology(root: Path, siblings: dict[int, str], capacity: dict[int, int]) -> Path:
    for cpu, text in siblings.items():
        (root / f"cpu{cpu}/topology").mkdir(parents=True)
        (root / f"cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")
        if cpu in capacity:
            (root / f"cpu{cpu}/cpu_capacity").write_text(f"{capacity[cpu]}\n")
    return root


def test_siblings_count_once(tmp_path: Path) -> None:
    root = topology(tmp_path, {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}, {})
    assert one_per_core((0, 1, 4, 5), root) == (0, 1)
    assert one_per_core((4, 5), root) == (4, 5)


def test_big_cores_come_first(tmp_path: Path) -> None:
    root = topology(tmp_path, {cpu: str(cpu) for cpu in range(4)}, {0: 400, 1: 400, 2: 1024, 3: 1024})
    assert one_per_core(range(4), root) == (2, 3, 0, 1)


def test_without_a_description_each_processor_is_a_core(tmp_path: Path) -> None:
    assert one_per_core((3, 1), tmp_path) == (1, 3)


@pytest.mark.parametrize(("text", "numbers"), [("0-3,8", (0, 1, 2, 3, 8)), ("5\n", (5,)), ("", ())])
def test_lists_of_the_kernel(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


@given(st.sets(st.integers(0, 255), min_size=1, max_size=32), st.integers(1, 64))
def test_a_choice_never_leaves_what_is_allowed(allowed: set[int], threads: int) -> None:
    chosen = affinity._choose(threads, allowed)
    assert set(chosen) <= allowed
    assert len(chosen) == min(threads, len(allowed)) == len(set(chosen))


def _pin_and_look(threads: int) -> tuple[tuple[int, ...] | None, list[int]]:
    return pin(threads), psutil.Process().cpu_affinity()


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="this system cannot pin")
def test_a_process_is_bound_to_what_it_says() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        chosen, found = pool.apply(_pin_and_look, (1,))
    assert chosen is not None
    assert list(chosen) == found
    assert len(found) == 1


def test_a_system_that_cannot_pin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert pin(1) is None
