"""What a container's cgroup says, in the files of both versions as kernels write them."""

from pathlib import Path

import pytest

from pipeline.cgroup import Usage, read_usage

MIB = 1 << 20
V2 = {
    "cgroup.controllers": "cpu io memory pids",
    "memory.current": f"{300 * MIB}\n",
    "memory.max": f"{512 * MIB}\n",
    "memory.peak": f"{400 * MIB}\n",
    "memory.stat": f"anon {150 * MIB}\nfile {150 * MIB}\ninactive_file {100 * MIB}\n",
    "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 12500000\nuser_usec 12000000\nsystem_usec 500000\nnr_periods 9\nnr_throttled 3\nthrottled_usec 750000\n",
    "io.stat": "8:0 rbytes=1000 wbytes=2000 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n",
}
V1 = {
    "memory/memory.usage_in_bytes": f"{300 * MIB}\n",
    "memory/memory.limit_in_bytes": f"{512 * MIB}\n",
    "memory/memory.max_usage_in_bytes": f"{400 * MIB}\n",
    "memory/memory.stat": f"cache 1\ninactive_file 5\ntotal_inactive_file {100 * MIB}\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "cpuacct/cpuacct.usage": "12500000000\n",
    "cpu/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 750000000\n",
    "blkio/blkio.throttle.io_service_bytes": "8:0 Read 1000\n8:0 Write 2000\n8:0 Total 3000\n8:16 Read 10\n8:16 Write 20\n8:16 Total 30\nTotal 3030\n",
}


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_both_versions_tell_the_same(tmp_path: Path, files: dict[str, str]):
    assert read_usage(written(tmp_path, files)) == Usage(
        working_set=200 * MIB,
        limit=512 * MIB,
        peak=400 * MIB,
        cpu_seconds=12.5,
        throttled_seconds=0.75,
        read_bytes=1010,
        written_bytes=2020,
        oom_kills=2,
    )


def test_a_container_without_a_limit_has_none(tmp_path: Path):
    v2, v1 = tmp_path / "v2", tmp_path / "v1"
    assert read_usage(written(v2, {**V2, "memory.max": "max\n"})).limit is None
    assert read_usage(written(v1, {**V1, "memory/memory.limit_in_bytes": "9223372036854771712\n"})).limit is None


def test_a_kernel_that_tells_no_peak_and_a_machine_without_cgroups_are_no_error(tmp_path: Path):
    before_5_19 = {name: text for name, text in V2.items() if name != "memory.peak"}
    assert read_usage(written(tmp_path / "old", before_5_19)).peak is None
    assert read_usage(tmp_path / "nothing") == Usage()
    assert str(Usage()) == "memory peaked at an unknown amount of no limit"
