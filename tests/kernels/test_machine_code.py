"""Cached machine code goes when any source of its package changed, and stays otherwise."""

from ado_kernels.machine_code import drop_if_stale


def test_machine_code_lives_as_long_as_its_sources(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    (tmp_path / "part" / "b.py").write_text("y = 1\n")
    drop_if_stale(tmp_path)
    cache = tmp_path / "__pycache__"
    compiled = [cache / "a.f-1.py311.nbi", tmp_path / "part" / "__pycache__" / "b.f-1.py311.1.nbc"]

    def compile_all():
        for path in compiled:
            path.write_bytes(b"machine code")

    compile_all()
    drop_if_stale(tmp_path)
    assert all(path.exists() for path in compiled)
    (tmp_path / "part" / "b.py").write_text("y = 2\n")  # a.f calls something in b
    drop_if_stale(tmp_path)
    assert not any(path.exists() for path in compiled)
    compile_all()
    (tmp_path / "c.py").write_text("")
    drop_if_stale(tmp_path)
    assert not any(path.exists() for path in compiled)
    assert sorted(path.name for path in cache.iterdir()) == ["sources.sha1"]
