import platform
import subprocess
from pathlib import Path

import pytest

from edgekiln import cpu_features as subject
from edgekiln.cpu_features import ARM, X86, compare, cpu_features, parse_cpuinfo, parse_system_info
from edgekiln.probe import probe

CORTEX_A76 = "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"


def test_a_feature_counts_when_every_core_has_it():
    little = CORTEX_A76.replace(" asimddp", "")
    assert "asimddp" in parse_cpuinfo(CORTEX_A76 * 4)
    assert "asimddp" not in parse_cpuinfo(CORTEX_A76 * 2 + little * 2)
    assert parse_cpuinfo("processor : 0\n") == frozenset()


@pytest.mark.parametrize(
    ("text", "machine", "has", "lacks"),
    [
        (CORTEX_A76, "aarch64", {"NEON", "DOTPROD", "FP16_VA"}, {"MATMUL_INT8", "SVE"}),
        ("flags : fpu pni ssse3 avx avx2 fma f16c bmi2 avx512f avx512_vnni\n", "x86_64", {"AVX512", "AVX512_VNNI"},
         {"AMX_INT8", "AVX512_BF16", "AVX_VNNI"}),
    ],
)  # fmt: skip
def test_the_names_are_those_that_llama_cpp_prints(tmp_path, monkeypatch, text, machine, has, lacks):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(subject, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = cpu_features()
    assert {name for name in found if found[name]} >= has
    assert {name for name in found if found[name] is False} >= lacks


def test_macos_is_asked_by_sysctl_and_a_key_that_it_lacks_is_a_later_processors(monkeypatch):
    answer = "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, answer, "unknown oid")
    )
    found = subject._of_macos(ARM)
    assert (found["NEON"], found["DOTPROD"], found["MATMUL_INT8"], found["SME"]) == (True, True, False, False)
    assert subject._of_macos(X86)["AVX_VNNI"] is None


def test_where_the_system_does_not_tell_nothing_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_CPUINFO", tmp_path / "nowhere")
    monkeypatch.setattr(subject.sys, "platform", "freebsd14")
    found = cpu_features()
    assert found
    assert set(found.values()) == {None}
    assert compare({"AVX512"}, found) == subject.Fit((), ())


def test_a_build_for_more_than_the_processor_has_is_lethal_and_for_less_is_slow():
    processor = {"AVX2": True, "FMA": True, "AVX512": False, "AMX_INT8": None}
    assert compare({"AVX2", "AVX512", "AMX_INT8", "OPENMP"}, processor) == subject.Fit(("AVX512",), ("FMA",))


def test_what_is_off_does_not_count():
    text = "CUDA : ARCHS = 890 | CPU : AVX2 = 1 | AVX512 = 0 | SVE_CNT = 32 | REPACK = 1 | "
    assert parse_system_info(text) == {"ARCHS", "AVX2", "SVE_CNT", "REPACK"}


def test_the_installed_llama_cpp_uses_nothing_that_this_processor_lacks(tmp_path):
    """It runs in every other test; so the two tables of names must agree."""
    built = parse_system_info(probe(["llama_cpp"], tmp_path)["llama_cpp"]["facts"]["system_info"])
    processor = cpu_features()
    assert built & set(processor)
    if Path("/proc/cpuinfo").exists():
        assert compare(built, processor).lethal == ()
