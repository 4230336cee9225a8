"""How much memory a process can still have: its machine, the groups around it, its address space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlcore.device_memory import free_memory
from rlcore.train.cli import main

CPU = torch.device("cpu")
MACHINE = 64 * 2**30
UNLIMITED_V1 = 9223372036854771712


def system(root: Path, files: dict[str, str] | None = None) -> Path:
    """A root folder whose machine has 64 GiB, with more files by their path."""
    every = {
        "proc/meminfo": f"MemTotal: {MACHINE} kB\nMemFree:  1024 kB\nMemAvailable:   {MACHINE // 1024} kB\n",
        "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\nMax address space  unlimited  unlimited  bytes\n",
        "proc/self/status": "Name:\tpython\nVmPeak:\t 2048 kB\nVmSize:\t 1024 kB\n",
    } | (files or {})
    for path, text in every.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def group(path: str, limit: int | str, used: int, files: str = "") -> dict[str, str]:
    """Files of a group of version 2."""
    own = f"sys/fs/cgroup/{path}".rstrip("/")
    return {f"{own}/memory.max": f"{limit}\n", f"{own}/memory.current": f"{used}\n", f"{own}/memory.stat": files}


def old_group(path: str, limit: int | str, used: int, files: str = "") -> dict[str, str]:
    """Files of a group of version 1."""
    own = f"sys/fs/cgroup/memory/{path}".rstrip("/")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return {f"{own}/{name}": f"{value}\n" for name, value in zip(names, (limit, used, files), strict=True)}


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    own = {"proc/self/cgroup": "0::/user/me\n"} | group("user", "max", 10**9) | group("user/me", "max", 10**8)
    assert free_memory(CPU, system(tmp_path, own)) == MACHINE
    own = {"proc/self/cgroup": "1:cpu:/\n4:memory:/mine\n0::/\n"} | old_group("mine", UNLIMITED_V1, 5 * 10**9)
    assert free_memory(CPU, system(tmp_path / "v1", own)) == MACHINE


def test_it_is_what_the_limit_of_a_group_leaves(tmp_path: Path) -> None:
    # Files in memory can be given up; what programs hold, and files that are shared memory, cannot.
    stat = "anon 700\nfile 290\ninactive_anon 90\nactive_anon 700\ninactive_file 120\nactive_file 80\n"
    own = {"proc/self/cgroup": "0::/mine\n"} | group("mine", 10_000, 1_000, stat)
    assert free_memory(CPU, system(tmp_path, own)) == 10_000 - 1_000 + 200
    # Version 1 counts a group's own apart from those of all below it, which the limit is for.
    stat = (
        "inactive_file 7\nactive_file 7\nhierarchical_memory_limit 1\ntotal_inactive_file 120\ntotal_active_file 80\n"
    )
    for line in ("4:memory:/mine", "2:cpu,memory,pids:/mine"):
        own = {"proc/self/cgroup": f"9:name=systemd:/\n{line}\n0::/\n"} | old_group("mine", 10_000, 1_000, stat)
        assert free_memory(CPU, system(tmp_path / line[0], own)) == 10_000 - 1_000 + 200


def test_the_tightest_of_all_groups_around_counts(tmp_path: Path) -> None:
    groups = group("a", 9_000, 5_000) | group("a/b", "max", 4_000) | group("a/b/c", 8_000, 2_000)
    own = {"proc/self/cgroup": "0::/a/b/c\n"} | groups
    assert free_memory(CPU, system(tmp_path, own)) == 4_000
    assert free_memory(CPU, system(tmp_path, own | group("other", 10, 9))) == 4_000  # none of ours
    assert free_memory(CPU, system(tmp_path, own | group("", 7_000, 6_000))) == 1_000
    own = {"proc/self/cgroup": "3:memory:/a/b\n"} | old_group("a", 9_000, 5_000) | old_group("a/b", 8_000, 2_000)
    assert free_memory(CPU, system(tmp_path / "v1", own)) == 4_000


@pytest.mark.parametrize("path", ["/docker/0123", "/", "/../other", "/gone (deleted)"])
def test_inside_a_container_the_tree_begins_with_its_own_group(tmp_path: Path, path: str) -> None:
    own = {"proc/self/cgroup": f"0::{path}\n"} | group("", 10_000, 4_000)
    assert free_memory(CPU, system(tmp_path, own)) == 6_000
    own = {"proc/self/cgroup": f"5:memory:{path}\n0::{path}\n"} | old_group("", 10_000, 4_000)
    assert free_memory(CPU, system(tmp_path / "v1", own)) == 6_000


def test_it_is_what_is_left_of_the_address_space(tmp_path: Path) -> None:
    limits = {"proc/self/limits": f"Max address space         {3 * 2**20}    unlimited            bytes\n"}
    assert free_memory(CPU, system(tmp_path, limits)) == 2 * 2**20
    limits = {"proc/self/limits": "Max address space  5000  5000  bytes\n"}
    assert free_memory(CPU, system(tmp_path, limits)) == 0  # what was taken before the limit was set


def test_what_is_missing_or_odd_says_nothing(tmp_path: Path) -> None:
    assert free_memory(CPU, tmp_path / "none") is None
    odd = {"proc/self/cgroup": "no group\n\n0\n", "proc/self/limits": "", "proc/self/status": "VmSize:\nVmLck: 7 kB\n"}
    assert free_memory(CPU, system(tmp_path, odd | group("", "", 5))) == MACHINE
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/\xff\xfe\n")
    (tmp_path / "proc/meminfo").unlink()
    (tmp_path / "proc/meminfo").mkdir()
    assert free_memory(CPU, tmp_path) is None
    stat = {"proc/self/cgroup": "0::/\n"} | group("", 10_000, 4_000, "oops\ninactive_file many\n")
    assert free_memory(CPU, system(tmp_path / "stat", stat)) == 6_000


LIMITED = """
import resource
import torch
from rlcore import ConfigError, device_memory, replay
from rlcore.device_memory import free_memory, size_text

cpu = torch.device("cpu")
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, -1))
assert 2**29 < free_memory(cpu) <= 2**30, size_text(free_memory(cpu))

def refusal():
    try:
        replay.Replay(15_000_000, 10, {"a": 20}, 3, 1000, cpu)  # 1.4 GiB, and half of it for observations of bf16
    except ConfigError as error:
        return str(error)

print(refusal())
device_memory.free_memory = lambda device: None
print(refusal())
"""


@pytest.mark.skipif(not Path("/proc/self/limits").is_file(), reason="needs Linux")
def test_a_limited_process_is_refused_and_not_killed() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checked, tried = done.stdout.splitlines()
    start = "buffer_size: 15000000 transitions take 1.4"
    assert checked.startswith(start) and "and the host has " in checked
    assert checked.endswith(" or less, or store_obs to bf16")
    assert tried.startswith(start) and "which cannot be had (" in tried and "can't allocate memory" in tried
    assert tried.endswith("; set buffer_size to less, or store_obs to bf16")


def test_remedies_are_named_as_they_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlcore.device_memory.free_memory", lambda device: 2**20)
    words = ["--task", "Pendulum", "--algo", "sac", "--agent.learning-starts", "4", "--runs-dir", str(tmp_path)]
    assert main(["train", *words, "--agent.buffer-size", "45_000"]) == 2
    error = capsys.readouterr().err
    assert "error: agent.buffer_size: 45000 transitions take" in error
    assert error.rstrip().endswith(" or less, or agent.store_obs to bf16")
    assert "; set agent.buffer_size to " in error
    assert main(["train", *words, "--agent.buffer-size", "10_000_000"]) == 2
    error = capsys.readouterr().err
    assert "; set agent.buffer_size to " in error and "store_obs" not in error
