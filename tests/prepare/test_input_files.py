"""Which files an input names, in which order, and the domain of each."""

import os

import pytest

from ado_stream.corpus import open_corpus
from ado_stream.corpus.tokenizer import load_tokenizer
from ado_stream.durable import DiskError
from ado_stream.errors import ConfigError, NotFound
from ado_stream.prepare.input_files import file_kind, find_input_files


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def _found(root, inputs, split="train", by_path=True):
    files = find_input_files(inputs, split, by_path).files
    return [(str(file.path).removeprefix(f"{root}/"), file.domain) for file in files]


def test_the_domain_is_the_first_name_below_the_input(tmp_path):
    _touch(tmp_path, "wiki/b/2.txt", "wiki/a.txt", "code.jsonl.zst", "law/x.parquet", "law/README", ".git/config.txt")
    assert _found(tmp_path, [tmp_path]) == [
        ("code.jsonl.zst", "code"),
        ("law/x.parquet", "law"),
        ("wiki/a.txt", "wiki"),
        ("wiki/b/2.txt", "wiki"),
    ]


def test_a_file_given_by_itself_names_its_domain_and_inputs_keep_their_order(tmp_path):
    _touch(tmp_path, "z.jsonl", "a.jsonl.gz")
    inputs = [tmp_path / "z.jsonl", tmp_path / "a.jsonl.gz"]
    assert _found(tmp_path, inputs) == [("z.jsonl", "z"), ("a.jsonl.gz", "a")]


@pytest.mark.parametrize("mark", ["dataset_info.json", "dataset_dict.json", "README.md"])
def test_a_hugging_face_folder_is_one_domain_without_its_held_out_files(tmp_path, mark):
    root = tmp_path / "tiny"
    _touch(root, "data/train-00000-of-00001.parquet", "data/validation-00000.parquet", "data/test.parquet")
    _touch(root, "data/testament.parquet")
    (root / mark).write_text("---\nlicense: mit\n---\n")
    assert _found(root, [root]) == [
        ("data/testament.parquet", "tiny"),
        ("data/train-00000-of-00001.parquet", "tiny"),
    ]
    assert _found(root, [root], split="val") == [
        ("data/test.parquet", "tiny"),
        ("data/validation-00000.parquet", "tiny"),
    ]
    assert [name for name, _ in _found(tmp_path, [tmp_path])] == [
        "tiny/data/testament.parquet",
        "tiny/data/train-00000-of-00001.parquet",
    ]


def test_missing_unknown_empty_and_doubled_inputs_are_named(tmp_path):
    _touch(tmp_path, "a/1.txt", "b.pdf", "only/c.pdf")
    with pytest.raises(NotFound, match="nowhere: no such file"):
        find_input_files([tmp_path / "nowhere"], "train", True)
    with pytest.raises(ConfigError, match=r"b.pdf: unknown kind"):
        find_input_files([tmp_path / "b.pdf"], "train", True)
    with pytest.raises(ConfigError, match="only: no readable file"):
        find_input_files([tmp_path / "only"], "train", True)
    with pytest.raises(ConfigError, match=r"1.txt: given twice"):
        find_input_files([tmp_path / "a", tmp_path / "a" / "1.txt"], "train", True)


def test_a_folder_without_text_is_an_empty_domain_only_where_folders_are_domains(tmp_path):
    _touch(tmp_path, "a/1.txt", "pictures/c.png")
    with pytest.raises(ConfigError, match="domain 'pictures' has no document"):
        find_input_files([tmp_path], "train", by_path=True)
    assert len(find_input_files([tmp_path], "train", by_path=False).files) == 1


def test_kinds():
    assert file_kind("c4-train.00000-of-01024.json.gz") == "lines"
    assert file_kind("data.json") is None


def test_a_link_to_a_folder_is_followed_once_and_loops_end(tmp_path):
    _touch(tmp_path, "elsewhere/b.txt", "in/a/1.txt")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path)
    (tmp_path / "in/a/self").symlink_to(tmp_path / "in")
    found = find_input_files([tmp_path / "in"], "train", True)
    assert [(file.path.removeprefix(f"{tmp_path}/in/"), file.domain) for file in found.files] == [
        ("a/1.txt", "a"),
        ("linked/b.txt", "linked"),
    ]
    # in/a/self, elsewhere below the parent, and in below the parent
    assert found.left_out == {"link to a folder that is read already": 3}


def test_a_link_to_a_domain_beside_it_is_counted_and_one_to_an_empty_folder_is_refused(tmp_path):
    _touch(tmp_path, "in/a/1.txt")
    (tmp_path / "in/b").symlink_to("c")
    (tmp_path / "in/c").symlink_to("a")
    found = find_input_files([tmp_path / "in"], "train", True)
    assert [file.domain for file in found.files] == ["a"]
    assert found.left_out == {"link to a folder that is read already": 2}
    (tmp_path / "empty").mkdir()
    (tmp_path / "in/d").symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match="domain 'd' has no document"):
        find_input_files([tmp_path / "in"], "train", True)


def test_what_is_not_read_is_counted_by_ending_and_reason(tmp_path):
    unread = [
        "1.jsonl.xz",
        "2.JSON.xz",
        "3.ndjson",
        "4.json",
        "5.zstd",
        "6.txt.gz",
        "7.ndjson",
        "README",
        ".git/c.txt",
    ]
    _touch(tmp_path, "a/1.txt", "a/2.JSONL", *(f"a/{name}" for name in unread))
    found = find_input_files([tmp_path], "train", True)
    assert [file.path.rpartition("/")[2] for file in found.files] == ["1.txt", "2.JSONL"]
    endings = {".jsonl.xz": 1, ".JSON.xz": 1, ".ndjson": 2, ".json": 1, ".zstd": 1, ".txt.gz": 1, "nameless": 1}
    expected = {f"{ending} file, not of a known kind": count for ending, count in endings.items()}
    assert found.left_out == expected | {"hidden file or folder": 1}
    (tmp_path / "only").mkdir()
    _touch(tmp_path, "only/a.xz")
    with pytest.raises(ConfigError, match=r"no readable file below it \(there: .xz file"):
        find_input_files([tmp_path / "only"], "train", True)


def test_held_out_files_of_a_data_set_are_counted(tmp_path):
    _touch(tmp_path, "data/train.parquet", "data/test.parquet")
    (tmp_path / "README.md").write_text("---\n---\n")
    assert find_input_files([tmp_path], "train", True).left_out == {
        ".md file, not of a known kind": 1,
        "held-out file of a Hugging Face data set": 1,
    }


def test_links_to_nothing_and_what_is_no_file_are_refused(tmp_path):
    _touch(tmp_path, "a/1.txt")
    (tmp_path / "a/gone.jsonl").symlink_to(tmp_path / "nowhere")
    for given in (tmp_path, tmp_path / "a/gone.jsonl"):
        with pytest.raises(NotFound, match=r"gone.jsonl: the link points to nothing"):
            find_input_files([given], "train", True)
    (tmp_path / "a/gone.jsonl").rename(tmp_path / "wiki")  # a folder on a disk that is not mounted, perhaps
    with pytest.raises(NotFound, match=r"wiki: the link points to nothing"):
        find_input_files([tmp_path], "train", True)
    (tmp_path / "wiki").unlink()
    os.mkfifo(tmp_path / "a/pipe.jsonl")
    with pytest.raises(ConfigError, match=r"pipe.jsonl: not a regular file"):
        find_input_files([tmp_path], "train", True)


def test_what_cannot_be_read_is_refused_and_not_left_out(unprivileged_folder):
    _touch(unprivileged_folder, "a/1.txt", "b/c/2.txt")
    (unprivileged_folder / "b/c").chmod(0)
    with pytest.raises(DiskError, match=r"b/c: Permission denied"):
        find_input_files([unprivileged_folder], "train", True)
    (unprivileged_folder / "b/c").chmod(0o700)
    (unprivileged_folder / "a/1.txt").chmod(0)
    with pytest.raises(DiskError, match=r"a/1.txt: Permission denied"):
        find_input_files([unprivileged_folder], "train", True)
    (unprivileged_folder / "a").chmod(0o444)  # its names can be read, and nothing more
    for given in (unprivileged_folder, unprivileged_folder / "a/1.txt"):
        with pytest.raises(DiskError, match=r"/a/.*: Permission denied.*\n.*leave it out"):
            find_input_files([given], "train", True)
    for load in (load_tokenizer, open_corpus):
        with pytest.raises(DiskError, match=r"/a/.*: Permission denied.*\n  Make it readable"):
            load(str(unprivileged_folder / "a/x"))


@pytest.mark.parametrize("split", ["one input", "two inputs", "train and val"])
def test_names_that_differ_in_undecodable_bytes_are_not_one_domain(tmp_path, split):
    first, second = (tmp_path / os.fsdecode(f"{n}/caf".encode() + byte) for n, byte in enumerate((b"\xe8", b"\xe9")))
    if split == "one input":
        second = first.with_name(second.name)
    _touch(first, "1.txt")
    _touch(second, "2.txt")
    roots = sorted({first.parent, second.parent})
    inputs, val = (roots[:1], roots[1:]) if split == "train and val" else (roots, [])
    with pytest.raises(ConfigError, match="would both be domain 'caf\ufffd'"):
        find_input_files(inputs, "train", True, val)
    assert len(find_input_files(inputs, "train", False, val).files) == 2


def test_a_flat_folder_of_texts_is_said_to_be_as_many_domains(tmp_path):
    _touch(tmp_path, *(f"{n}.txt" for n in range(20)))
    found = find_input_files([tmp_path], "train", True)
    assert len({file.domain for file in found.files}) == 20
    assert found.notes == [
        f"{tmp_path}: each of the 20 .txt files directly in it is a domain of its own; "
        "to make them one domain, move them into a folder below it"
    ]
    assert find_input_files([tmp_path], "train", False).notes == []


def test_a_hard_link_is_the_same_file(tmp_path):
    _touch(tmp_path, "a/1.txt")
    os.link(tmp_path / "a/1.txt", tmp_path / "a/2.txt")
    with pytest.raises(ConfigError, match=r"2.txt: given twice \(as .*1.txt\)"):
        find_input_files([tmp_path], "train", True)


@pytest.mark.parametrize("name", ["_temporary", "_delta_log", ".hoodie"])
@pytest.mark.parametrize("below", [".", "a/b"])
def test_a_folder_with_files_that_do_not_count_is_refused(tmp_path, name, below):
    _touch(tmp_path, "a/1.txt", f"{below}/part-0.parquet", f"{below}/{name}/0/part-0.parquet")
    with pytest.raises(ConfigError, match=rf"\({name} is in it\)"):
        find_input_files([tmp_path], "train", True)


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "train-*: 2 of the 3 files"),
        (["train-00000-of-00002-1a2b.jsonl", "train-00001-of-00002-3c4d.jsonl"], None),
        (["c4.00000-of-01024.jsonl", "one-of-2.jsonl"], "c4.*: 1 of the 1024 files"),
        (["a-1-of-2.jsonl", "a-1-of-2.b.jsonl"], "a-*: 1 of the 2 files"),
    ],
)
def test_a_set_of_files_that_is_not_whole_is_noted(tmp_path, names, noted):
    for name in names:
        (tmp_path / name).write_text('{"text": "a"}\n')
    notes = find_input_files([tmp_path], "train", False).notes
    assert notes == ([f"{tmp_path}/{noted} that their names count"] if noted else [])


def test_a_file_of_lines_without_a_byte_is_noted(tmp_path):
    """A compressed one is damaged, and an empty text file an empty document: those are counted when they are read."""
    _touch(tmp_path, "a/1.jsonl", "a/2.txt", "a/3.jsonl.gz", "a/4.jsonl")
    for name in ("1.jsonl", "2.txt"):
        (tmp_path / "a" / name).write_bytes(b"")
    notes = find_input_files([tmp_path], "train", True).notes
    assert notes == [f"files without a byte, whose download may have failed: {tmp_path}/a/1.jsonl"]
